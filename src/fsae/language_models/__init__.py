"""Language models as sources of activations: what we need of one, where it is read, how it is opened."""
