"""Sweeps: the launchers of their jobs, and the summary at their end."""
