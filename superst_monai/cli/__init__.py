"""The command `superst`: parse and call, nothing else."""
