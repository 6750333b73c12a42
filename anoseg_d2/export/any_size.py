"""Let an ONNX graph of a network that sees windows take one photograph of any size.

torch traces shapes, but how many windows an image has follows from its size by rounding, which it
cannot trace. So the network is traced for any number of windows, and what is before and after it is
added here, operation by operation: what `plan_windows` and `cut_windows` do, with equal windows to
the last bit, and the merging of the windows' maps.

Shape letters: n windows, of each scale ny * nx in rows and columns, (h, w) of a window, (H, W) of
the photograph, (R, S) of the resized one, M maps.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from anoseg_d2.export.fixed_resize import MOST_BITS, WEIGHT_LIMIT


class _Operations:
    """Adds nodes to a graph: `ops.Add(x, 1.0)` returns the output, and numbers become constants."""

    def __init__(self):
        self.tape = Tape()

    def __getattr__(self, kind: str):
        def add(*inputs, **attributes) -> ir.Value:
            return self.tape.op(kind, [self._value(value) for value in inputs], attributes)

        return add

    def _value(self, value):
        if value is None or isinstance(value, ir.Value):
            return value
        return self.tape.op("Constant", [], {"value": ir.tensor(np.asarray(value))})

    def vector(self, *numbers) -> ir.Value:
        """Join integers, known or not, to a vector, such as a shape."""
        parts = [self.Reshape(n, [1]) if isinstance(n, ir.Value) else [n] for n in numbers]
        return self.Concat(*parts, axis=0)

    def entry(self, vector: ir.Value, index: int) -> ir.Value:
        """Return one number of a vector, as a scalar."""
        return self.Gather(vector, index, axis=0)

    def double(self, value: ir.Value) -> ir.Value:
        return self.Cast(value, to=ir.DataType.DOUBLE.value)

    def integer(self, value: ir.Value) -> ir.Value:
        return self.Cast(value, to=ir.DataType.INT64.value)

    def counting(self, count: ir.Value) -> ir.Value:
        """Return 0..count - 1."""
        return self.Range(0, count, 1)


def add_any_size(
    graph: ir.Graph,
    window: tuple[int, int],
    kind: str,
    *,
    overlap: float,
    flip: bool,
    scales: Sequence[float],
    weights: tuple[np.ndarray, np.ndarray],
) -> None:
    """Change a graph of windows into one of a photograph, in place.

    Args:
        graph: inputs `crops` (n, 3, h, w) and `maps` (scales, M, H, W), both float32; outputs first
            the maps of the windows, (n, M, h, w), then what is computed from `maps`.
        window: (h, w).
        kind: type of the photograph, "uint8" or "float32".
        overlap, flip, scales: see `plan_windows`, which makes one plan for each scale.
        weights: of a window's rows and columns, see `WindowPlan`.
    """
    crops, maps = graph.inputs
    window_maps = graph.outputs[0]
    kind = ir.DataType.UINT8 if kind == "uint8" else ir.DataType.FLOAT
    shape = ir.Shape([1, 3, "height", "width"])
    image = ir.Value(name="image", type=ir.TensorType(kind), shape=shape)
    ops = _Operations()
    size = ops.Shape(image, start=2)
    cuts, layouts = [], []
    for scale in scales:
        resized = _resized(ops, size, window, scale)
        pixels = [
            _window_pixels(ops, ops.entry(resized, axis), window[axis], overlap) for axis in (0, 1)
        ]
        cuts.append(_cut(ops, image, size, resized, pixels, window))
        layouts.append((resized, pixels))
    cut = ops.Concat(*cuts, axis=0)
    if flip:  # the mirrored windows come after the others
        cut = ops.Concat(cut, _mirrored(ops, cut), axis=0)
        count = ops.Div(ops.entry(ops.Shape(window_maps), 0), 2)
        plain = ops.Slice(window_maps, [0], ops.vector(count), [0])
        mirrored = ops.Slice(window_maps, ops.vector(count), [2**31], [0])
        found = ops.Mul(ops.Add(plain, _mirrored(ops, mirrored)), np.float32(0.5))
    else:
        found = window_maps
    start, scaled = 0, []
    for part, layout in zip(cuts, layouts, strict=True):
        stop = ops.Add(start, ops.entry(ops.Shape(part), 0))
        own = ops.Slice(found, ops.vector(start), ops.vector(stop), [0])
        merged = _merge(ops, own, *layout, weights)
        sizes = ops.Concat(ops.Shape(merged, end=2), size, axis=0)
        scaled.append(ops.Resize(merged, None, None, sizes, mode="linear"))
        start = stop
    native = ops.Concat(*scaled, axis=0)
    ir.convenience.replace_all_uses_with([crops, maps], [cut, native])
    graph.inputs[:] = [image]
    del graph.outputs[0]
    graph.extend(list(ops.tape.nodes))
    graph.sort()


def _mirrored(ops: _Operations, values: ir.Value) -> ir.Value:
    return ops.Slice(values, [-1], [-(2**31)], [3], [-1])


def _resized(ops: _Operations, size: ir.Value, window, scale: float) -> ir.Value:
    """Return the size at which an image covers the window, (2,)."""
    sides, least = ops.double(size), np.array(window, np.float64)
    enlarged = ops.Mul(ops.ReduceMax(ops.Div(least, sides), keepdims=0), float(scale))
    return ops.integer(ops.Max(least, ops.Round(ops.Mul(sides, enlarged))))


def _window_pixels(ops: _Operations, side: ir.Value, window: int, overlap: float) -> ir.Value:
    """Return the rows (or columns) of the resized image that each window has, (ny, h)."""
    gap = ops.Sub(side, window)
    steps = ops.integer(ops.Ceil(ops.Div(ops.double(gap), window * (1 - overlap))))
    numbers = ops.counting(ops.Add(steps, 1))
    starts = ops.Div(ops.Mul(numbers, gap), ops.Max(steps, 1))
    return ops.Add(ops.Unsqueeze(starts, [1]), np.arange(window))


def _weights(ops: _Operations, source: ir.Value, target: ir.Value) -> ir.Value:
    """Return what `fixed_point_weights` does, (source, target) float32."""
    # Pixel i is |(i + 1/2) / source - (j + 1/2) / target| from where pixel j is read. Times twice
    # source * target that is a whole number, exact in runtimes without doubles too.
    places, centers = (ops.Add(ops.Mul(ops.counting(count), 2), 1) for count in (source, target))
    distance = ops.Sub(ops.Mul(ops.Unsqueeze(places, [1]), target), ops.Mul(centers, source))
    reach = ops.Mul(ops.Max(source, target), 2)
    triangle = ops.double(ops.Max(ops.Sub(reach, ops.Abs(distance)), 0))
    weights = ops.Div(triangle, ops.ReduceSum(triangle, [0]))
    # As many bits as let the largest weight fit.
    powers = 2.0 ** np.arange(1, MOST_BITS + 1)
    largest = ops.Floor(ops.Add(ops.Mul(ops.ReduceMax(weights, keepdims=0), powers), 0.5))
    fits = ops.double(ops.Less(largest, float(WEIGHT_LIMIT)))
    factor = ops.Pow(2.0, ops.ReduceSum(fits, keepdims=0))
    rounded = ops.Div(ops.Floor(ops.Add(ops.Mul(weights, factor), 0.5)), factor)
    return ops.Cast(rounded, to=ir.DataType.FLOAT.value)


def _cut(ops, image, size, resized, pixels, window) -> ir.Value:
    """Resize the image as `FixedResize` does, and cut the windows, (n, 3, h, w) float32."""

    def whole(values: ir.Value) -> ir.Value:
        nearest = ops.Floor(ops.Add(values, np.float32(0.5)))
        return ops.Clip(nearest, np.float32(0), np.float32(255))

    image = whole(ops.Cast(image, to=ir.DataType.FLOAT.value))  # images of floats are rounded too
    rows, columns = (_weights(ops, ops.entry(size, i), ops.entry(resized, i)) for i in (0, 1))
    image = whole(ops.MatMul(image, columns))
    image = whole(ops.MatMul(ops.Transpose(rows, perm=[1, 0]), image))
    image = ops.Squeeze(image, [0])
    crops = ops.Gather(ops.Gather(image, pixels[0], axis=1), pixels[1], axis=3)
    return ops.Reshape(ops.Transpose(crops, perm=[1, 3, 0, 2, 4]), [-1, 3, *window])


def _merge(ops, maps, resized, pixels, weights) -> ir.Value:
    """Average the windows' maps (n, M, h, w) where windows overlap: (1, M, R, S)."""
    window = [len(values) for values in weights]
    counts = [ops.entry(ops.Shape(numbers), 0) for numbers in pixels]
    if weights[0].min() < 1:
        maps = ops.Mul(maps, weights[0][:, None] * weights[1])
    maps = ops.Reshape(maps, ops.vector(*counts, -1, *window))
    channels = ops.entry(ops.Shape(maps), 2)
    # What is added to comes first, so that whole slices of memory are added: columns, then rows.
    maps = ops.Transpose(maps, perm=[1, 4, 0, 3, 2])
    shape = ops.vector(ops.entry(resized, 1), counts[0], window[0], channels)
    maps = _added(ops, maps, pixels[1], shape)
    shape = ops.vector(ops.entry(resized, 0), ops.entry(resized, 1), channels)
    maps = _added(ops, ops.Transpose(maps, perm=[1, 2, 0, 3]), pixels[0], shape)
    for axis, numbers in enumerate(pixels):
        each = ops.Expand(weights[axis], ops.Shape(numbers))
        total = _added(ops, each, numbers, ops.vector(ops.entry(resized, axis)))
        maps = ops.Div(maps, ops.Unsqueeze(total, [1 - axis, 2]))
    return ops.Unsqueeze(ops.Transpose(maps, perm=[2, 0, 1]), [0])


def _added(ops, values: ir.Value, indices: ir.Value, shape: ir.Value) -> ir.Value:
    """Add slices of values to zeros of a shape, at indices along its first axis."""
    zeros = ops.Expand(np.float32(0), shape)
    return ops.ScatterND(zeros, ops.Unsqueeze(indices, [2]), values, reduction="add")
