"""Models as files, and predictions with them."""
