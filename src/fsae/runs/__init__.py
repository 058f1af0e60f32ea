"""A run from settings to results: its folder while it is under way, its parts, and its results."""
