"""Projects: create, read, rename, fork, delete."""
