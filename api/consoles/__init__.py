"""Beside a dev server: its log, commands and terminals, straight from the runtime."""
