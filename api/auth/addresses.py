"""Where a request comes from, as far as the server trusts it."""

from ipaddress import IPv6Address, ip_address, ip_network

from fastapi.requests import HTTPConnection

_IPV6_CUSTOMER = 64


def client_address(connection: HTTPConnection) -> str:
    """The client's address as throttles count it: an IPv6 network of 64 bits is one customer.

    Behind a proxy it is the forwarded one only when uvicorn was told to trust that proxy; a header alone is nothing.
    """
    host = connection.client.host if connection.client else "unknown"
    try:
        address = ip_address(host)
    except ValueError:
        return host
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ip_network((address, _IPV6_CUSTOMER), strict=False))
    return str(address)
