"""The command ``threadserve``: one verb per file, each a thin shell over the api."""
