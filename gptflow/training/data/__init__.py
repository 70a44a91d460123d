"""Data: rows that know where they come from, and what is wrong with them."""
