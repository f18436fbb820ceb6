"""A project's environment variables."""
