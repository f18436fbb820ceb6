"""A user's own account: profile, password, API keys."""
