"""Product-quantised matrix products: encode rows as 4-bit codes, sum the table entries they index."""
