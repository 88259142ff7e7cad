"""CUDA kernels of the operators and of the pyramid, and what launches them."""
