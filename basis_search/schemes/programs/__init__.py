"""Straight-line programs of additions for a scheme's linear maps: shortened, composed, emitted as source code."""
