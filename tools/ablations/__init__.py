"""Ablation studies: which runs they need, and the tables made of them."""
