"""`evaluate` metrics that need no download."""
