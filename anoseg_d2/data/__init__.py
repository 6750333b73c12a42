"""Datasets: registered, read, checked, and made."""
