"""Fast kernels: raw arrays in, raw arrays out. One folder per family; each says in ``CPU`` which kernels run here."""
