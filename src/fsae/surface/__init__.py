"""The contents of `import fsae`: dictionaries, training, evaluation, tables of runs, language models."""
