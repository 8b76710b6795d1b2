"""How we wait: the only room that may block, and the only one that knows no word of serving."""
