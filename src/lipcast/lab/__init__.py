"""The lab: measure speed, memory and quality."""
