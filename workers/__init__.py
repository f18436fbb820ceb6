"""The PROCESSES: composition roots of the API, the worker and the one-command local stack."""
