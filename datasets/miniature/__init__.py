"""Drawn street scenes in the layouts of the real datasets."""
