"""Compiled encode and decode of Strassen-Tile layers: z_l = E x per tile, y = D s per tile."""
