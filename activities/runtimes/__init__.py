"""One port, three drivers: docker, kubernetes, local. `open.py` alone knows which."""
