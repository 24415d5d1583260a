"""Sending to remote servers: packing the tensors of a method, and checking that it can be sent."""
