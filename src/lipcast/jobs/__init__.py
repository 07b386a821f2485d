"""Jobs: videos that are made segment by segment, and continue after any interruption."""
