"""The ``dela`` command and those of its commands that belong to no other folder."""
