"""Known algorithms derived and proved with sympy, and interpolation points that round little."""
