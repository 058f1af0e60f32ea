"""Settings: their schema, how YAML becomes them, and what must hold between them."""
