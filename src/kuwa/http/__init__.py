"""HTTP/1.1 for both programs: the server connection, its ASGI bridge, and the pooled client."""
