"""Measured tables: each suite a module whose PARTS maps a part's name to a function (device, threads) -> rows."""
