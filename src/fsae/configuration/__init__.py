"""Settings: their schema, their composition from YAML, and the checks that they pass."""
