"""Compiled CPU kernels and Triton GPU kernels on raw arrays: one folder per family, and additions/ and schemes/."""
