"""From results.json to a page, tables and curves."""
