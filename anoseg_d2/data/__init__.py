"""Data sets: registered, read, checked, and made."""
