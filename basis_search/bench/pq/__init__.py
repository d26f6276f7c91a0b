"""Measured tables of product quantisation."""
