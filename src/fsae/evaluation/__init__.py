"""Measurements of trained autoencoders on held-out data."""
