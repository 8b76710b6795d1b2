"""What calls, chains and streams cost, beside what else one could use: one question per file, one reporter."""
