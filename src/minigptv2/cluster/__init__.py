"""Contains process groups, Slurm, the watchdog, signals and restarts. Imports neither models nor data."""
