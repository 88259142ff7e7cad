"""Voxel grid, nearest neighbors and sampling, on the CPU and on the GPU."""
