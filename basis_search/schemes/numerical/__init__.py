"""Discovery by least squares: approximate bases, ternary bases, and rounding to exact coefficients."""
