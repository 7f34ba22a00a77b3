"""Training: the state (arrays), the step (one device), the loop (one run)."""
