"""Measured tables of Strassen-Tile."""
