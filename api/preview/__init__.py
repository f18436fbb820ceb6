"""Previews: who gets in, what waits in front of a server that doesn't run, and where Traefik finds the others."""
