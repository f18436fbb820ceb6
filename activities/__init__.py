"""The EFFECTS that workflows ask for, behind ports."""
