"""Benchmarks of Kronecker-sparse chains."""
