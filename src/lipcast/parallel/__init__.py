"""Several devices at one video: a pipeline of denoising steps, split tokens and heads, sharded weights."""
