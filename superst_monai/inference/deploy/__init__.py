"""Runs for other programs: exported networks, and the check that a run folder is a sound bundle."""
