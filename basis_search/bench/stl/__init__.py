"""Benchmarks of Strassen-Tile."""
