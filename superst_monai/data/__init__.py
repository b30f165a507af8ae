"""Slides, assays and sections: everything that is read and the store that is written."""
