"""Shared parts of causal evaluations: prompts, gradients at sites, effects of latents, circuits."""
