"""The home side of remote servers: what is packed, and what may be sent."""
