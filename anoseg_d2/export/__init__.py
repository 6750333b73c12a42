"""Export to ONNX and torch's pt2."""
