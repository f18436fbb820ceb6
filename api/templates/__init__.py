"""What a project can be made from."""
