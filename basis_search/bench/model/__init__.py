"""Benchmarks on whole models in the metric of their outputs."""
