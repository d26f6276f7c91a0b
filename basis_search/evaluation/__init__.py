"""Evaluation of candidates: fit, correctness check, timing, limits and the Pareto front."""
