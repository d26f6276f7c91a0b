"""Product-quantised matrix products: encode rows into 4-bit codes, sum the table entries they name."""
