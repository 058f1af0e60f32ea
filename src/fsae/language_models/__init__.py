"""Language models as sources of activations: settings, sites, and how a model is opened and read."""
