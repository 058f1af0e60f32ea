"""The loop that minimises an objective, its state, and how it survives interruption."""
