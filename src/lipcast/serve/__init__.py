"""The server: live sessions over HTTP and WebSockets, and a page to talk to. FastAPI is used here only."""
