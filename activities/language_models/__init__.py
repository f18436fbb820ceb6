"""Drivers of the `LanguageModel` port: models behind OpenAI's protocol, and the keys that a LiteLLM proxy gives out."""
