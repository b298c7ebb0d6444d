"""Live sessions over HTTP, WebSocket and WebRTC: a front holds the clients, engines step."""
