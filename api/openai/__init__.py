"""OpenAI's own routes, for clients that exist already."""
