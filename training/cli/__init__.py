"""The commands ``dela train``, ``dela summary``, ``dela data`` and ``dela room``."""
