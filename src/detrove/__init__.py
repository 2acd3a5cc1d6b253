"""detrove."""
