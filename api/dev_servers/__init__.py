"""Dev servers: start, stop, restart, status."""
