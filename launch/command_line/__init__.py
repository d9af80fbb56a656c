"""From the command line to a `LaunchConfig`: flags, nodes of Slurm, cores and GPUs."""
