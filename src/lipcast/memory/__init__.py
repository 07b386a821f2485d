"""Memory of a loaded model: counted arenas, copies between host and device, streamed weights and KV rings."""
