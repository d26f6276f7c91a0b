"""Rings, bilinear schemes, the exact check by Brent's equations, and the transforms that act on schemes."""
