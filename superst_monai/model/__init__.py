"""The generative model, its guide and the objective."""
