"""nnsight: edits on a model here, and requests to servers."""
