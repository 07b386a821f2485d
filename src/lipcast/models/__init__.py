"""The networks, as pure torch modules that read like the papers. No policy, no device, no randomness."""
