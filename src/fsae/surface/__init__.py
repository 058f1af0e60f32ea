"""What `import fsae` offers: dictionaries, training, evaluation, tables of runs, language models."""
