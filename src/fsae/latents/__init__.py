"""Latents: one pass over data finds what every latent of a dictionary means."""
