"""Measured tables of the search itself."""
