"""Schemes found by this project, as verified JSON files with their provenance."""
