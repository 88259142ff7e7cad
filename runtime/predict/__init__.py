"""Labels for every point of a scan, on the host or on the GPU."""
