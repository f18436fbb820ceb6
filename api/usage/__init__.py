"""What the caller's model calls came to."""
