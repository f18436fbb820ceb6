"""A project's files over HTTP."""
