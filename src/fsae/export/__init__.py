"""Autoencoders in and out of SAELens' file format."""
