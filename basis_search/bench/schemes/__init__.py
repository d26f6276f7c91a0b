"""Benchmarks of exact schemes and of their search."""
