"""Rings, bilinear schemes, their exact check by Brent's equations, and transforms of schemes."""
