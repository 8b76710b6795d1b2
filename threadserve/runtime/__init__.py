"""What keeps it alive: the control plane, never on the path of a request."""
