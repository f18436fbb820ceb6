"""Projects' files: the FileStore, where a source comes from, and how a project starts."""
