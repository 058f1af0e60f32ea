"""What a trained autoencoder is worth on held-out data."""
