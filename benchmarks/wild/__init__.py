"""Measures transfer between networks and data that nobody here made, and how well the package's measures predict it."""
