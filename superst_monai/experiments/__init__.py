"""Reproducible experiments, one module each."""
