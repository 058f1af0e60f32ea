"""From finished runs to pictures and tables."""
