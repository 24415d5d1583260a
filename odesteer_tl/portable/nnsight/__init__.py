"""The code that runs inside an nnsight graph, here or on a server."""
