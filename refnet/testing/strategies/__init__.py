"""Hypothesis strategies for what the operations are given. They need hypothesis: ``pip install 'refnet[testing]'``."""
