"""Scores of a labelling."""
