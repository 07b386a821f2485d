"""Pictures, sound and video files (Pillow, PyAV). No torch."""
