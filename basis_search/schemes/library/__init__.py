"""The catalogue of schemes found by this project: verified JSON files with their provenance."""
