"""A CUDA driver that runs on the CPU, for tests: see README.md beside this file."""
