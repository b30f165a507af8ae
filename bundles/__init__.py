"""MONAI bundles of this project, without weights; installed as `superst_monai.bundles`."""
