"""What a file is asked to take and give."""

import pytest

from anoseg_d2.export.spec import ExportSpec


@pytest.mark.parametrize(
    "options, message",
    [
        ({"input": "int8"}, "input is .?int8.?; it must be one of uint8, float32"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"image_size": (0, 5)}, "image size must be positive"),
        ({"image_size": (9, 9), "any_size": True}, "not for both"),
        ({"batch": 2, "any_size": True}, "one image at a time"),
    ],
)
def test_a_spec_that_means_nothing_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ExportSpec(("rba",), **options)
