"""A search as one HTML page: the tree of beams, chunk by chunk, from the trace of a run."""
