"""The commands: one module per `python -m fsae.<command>`."""
