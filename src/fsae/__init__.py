"""Experiments with sparse autoencoders on language-model activations, configured by Hydra."""
