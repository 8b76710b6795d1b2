"""How HTTP comes in: from a request on a socket to a call on a handle, and back."""
