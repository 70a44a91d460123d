"""The adapters that the plugins ship: how each is made, and whether it passes its gates."""
