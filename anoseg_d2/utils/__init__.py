"""Chores that several packages need."""
