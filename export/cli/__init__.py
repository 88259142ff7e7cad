"""The commands ``dela export`` and ``dela build``."""
