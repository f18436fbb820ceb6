"""A project's event log, as a stream."""
