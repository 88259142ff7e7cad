"""Kinds of networks, one folder each."""
