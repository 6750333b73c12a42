"""Count scores and bound figures, for `PixelMetrics`."""
