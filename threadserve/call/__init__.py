"""What travels: one request and its answer, from the caller's hand to the replica and back."""
