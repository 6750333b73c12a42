"""Chores that every package shares."""
