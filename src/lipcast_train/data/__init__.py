"""Where training clips come from."""
