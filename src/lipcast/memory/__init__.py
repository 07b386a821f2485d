"""Where bytes live: counted arenas, copies between host and device, streamed weights and rings."""
