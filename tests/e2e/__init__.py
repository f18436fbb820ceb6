"""A package, so that what its tests stand on ends with the last of them, and not with the process."""
