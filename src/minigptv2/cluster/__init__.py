"""Process groups, Slurm, watchdog, signals and restarts. Knows nothing of models or data."""
