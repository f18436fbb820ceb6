"""The language models that can be asked for."""
