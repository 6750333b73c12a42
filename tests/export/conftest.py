"""Fixtures of the tests of export."""

import exported_models
import pytest


@pytest.fixture
def make_model():
    """Factory of a model that tells classes apart; see `exported_models.make_model`."""
    return exported_models.make_model
