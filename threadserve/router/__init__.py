"""Who runs it: one queue per deployment, the slots of its replicas, and the claims on both."""
