"""Point clouds in memory and in files."""
