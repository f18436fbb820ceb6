"""The one-command local stack: an embedded default for every part, under one foreground supervisor."""
