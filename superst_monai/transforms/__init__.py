"""MONAI transforms from a section to a patch of the network."""
