"""Scheme files: the project's own formats, readers for what others publish, and graphs."""
