"""Sparse codes of a batch and the products computed from them."""
