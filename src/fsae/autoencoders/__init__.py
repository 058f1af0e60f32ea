"""Architectures of autoencoders, one file for each, and the forward record that losses and metrics read."""
