"""How the world TALKS to the service: routers, schemas, auth, SSE and WebSocket bridges."""
