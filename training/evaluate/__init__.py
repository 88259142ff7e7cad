"""Scores of a network on labelled data, and what they are written to."""
