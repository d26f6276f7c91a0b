"""Discovery by least squares: approximate bases, ternary bases, and exact schemes by rounding."""
