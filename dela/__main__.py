"""``python -m dela``: the same as the ``dela`` command."""

from dela.cli import main

if __name__ == "__main__":
    main()
