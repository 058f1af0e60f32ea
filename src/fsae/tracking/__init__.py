"""Where a run's numbers go: a local file first, MLflow from there."""
