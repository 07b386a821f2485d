"""One training loop for every phase: optimiser, moving average, state on the disk, devices."""
