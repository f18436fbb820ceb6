"""Measurements, each as a ratio against a floor or a peer of the same run: `make bench`, or one by its module."""
