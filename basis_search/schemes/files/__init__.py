"""Scheme files: the project's own formats, readers for published formats, and graph files."""
