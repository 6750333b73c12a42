"""Counts and certified bounds behind `PixelMetrics`."""
