"""Benchmarks of product quantisation."""
