"""The loop that minimises an objective, its state, and its behaviour at interruptions."""
