"""Random changes to training samples: coordinates, columns, and scenes mixed with one another."""
