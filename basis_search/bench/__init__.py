"""Measured tables: each suite a module whose PARTS maps a part's name to a function (device, threads) -> rows.

A module may name in DEVICES the one device, "cpu" or "cuda", on which a part makes sense.
"""
