"""Operations: how far the work is that a POST began."""
