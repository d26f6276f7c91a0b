"""Benchmarks: each folder's suite.py maps part names to functions (device, threads) -> rows in PARTS.

A suite may name in DEVICES the device, "cpu" or "cuda", that a part is restricted to.
"""
