"""basis_search: cheaper replacements for dense linear layers, and fast bilinear algorithms."""
