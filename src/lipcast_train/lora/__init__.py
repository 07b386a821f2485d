"""Adapters (LoRA) of a checkpoint: trained on clips, beside weights that stay as they are."""
