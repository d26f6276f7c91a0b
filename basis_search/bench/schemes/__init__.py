"""Measured tables of exact schemes and their discovery."""
