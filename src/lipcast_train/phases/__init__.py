"""What is trained, one phase after the other: an objective, and where its batches come from."""
