"""One run: its folder, its networks, checkpoints, workers, precision, provenance."""
