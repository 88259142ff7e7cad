"""A second family of networks, as small as one can be: the proof that the seam holds."""
