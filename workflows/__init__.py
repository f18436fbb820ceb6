"""WHAT happens, in which order, with which promises. Pure: imports no other room."""
