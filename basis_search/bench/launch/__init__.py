"""Benchmarks of what a call of a GPU kernel costs the host."""
