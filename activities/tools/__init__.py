"""What the agent can do. A tool speaks to ports only; adding one is adding a module here (see registry.py)."""
