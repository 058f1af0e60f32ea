"""Sweeps: what launches their jobs, and what is said when they end."""
