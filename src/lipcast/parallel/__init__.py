"""One video on several devices: a pipeline of denoising steps, Ulysses, sharded weights."""
