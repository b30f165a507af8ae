"""One reader a platform: counts and spot geometry as an Assay."""
