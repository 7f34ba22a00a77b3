"""What a configuration means: its data, its networks, its results."""
