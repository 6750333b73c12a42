"""Drawn road scenes and objects: what the miniature is made of."""
