"""Writes Python functions, checks them and runs their tests in a sandbox."""
