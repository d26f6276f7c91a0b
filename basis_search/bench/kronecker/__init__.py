"""Measured tables of Kronecker-sparse chains."""
