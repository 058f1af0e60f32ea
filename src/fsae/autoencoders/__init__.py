"""Sparse autoencoders: one forward record, one file per architecture, codes dense or sparse."""
