"""DeLA v2 point-cloud networks."""
__version__ = "0.1.0"
