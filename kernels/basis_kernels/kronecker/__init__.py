"""Compiled chains of Kronecker-sparse factors: y = K_1 (K_2 (... (K_L x))) in one call, and their Triton kernels."""
