"""Train models of the Live Avatar family: the embedded one from nothing, and LoRAs of any checkpoint."""
