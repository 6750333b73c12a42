"""Pixel and component metrics, evaluators, and the report page."""
