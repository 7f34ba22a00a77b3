"""Pages, tables and what they are drawn from."""
