"""Tracking: a run's numbers are written to a local file first and uploaded to MLflow from there."""
