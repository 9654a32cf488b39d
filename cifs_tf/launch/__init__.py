"""Training by several processes: on this machine, by hand on several, on Kubernetes, on Slurm. No TensorFlow here."""
