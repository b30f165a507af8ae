"""Training: data, MONAI engines, handlers and the run folder."""
