"""Jobs: videos that are made segment by segment, and survive whatever ends a process."""
