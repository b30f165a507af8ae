"""Predictions in the formats of other programs: images with a pyramid, tables, and outlines with measurements."""
