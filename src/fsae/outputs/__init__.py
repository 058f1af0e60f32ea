"""The outputs folder: the files that a run, a sweep and a Slurm queue leave on disk. No torch, no MLflow."""
