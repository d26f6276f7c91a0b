"""How Triton kernels are configured and launched: choice of block sizes, tuning files, a launcher of low host cost."""
