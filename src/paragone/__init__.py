"""Paragone: compare open-weight language models on your own machine, and run them."""

__version__ = "0.1.0"
