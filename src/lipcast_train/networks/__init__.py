"""The networks of `lipcast.models` as they are trained: built, and run with gradients."""
