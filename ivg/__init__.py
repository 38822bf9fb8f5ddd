"""Guided decoding for frozen language models: Integrated Value Guidance (arXiv 2409.17819)."""
