"""``python -m threadserve``: the command ``threadserve`` for a Python that is not first on the path."""

from threadserve.cli.main import main

if __name__ == "__main__":
    main()
