"""Which pixels a value depends on, carried through the operations of a program.

The field of an array's element is a rectangle, and moves in equal steps along each axis of the
array, so that it takes one rectangle and its steps to describe all of them (Araujo, Norris, Sim,
Distill 2019). Nothing is known of layers: a window that is written as slices and sums is one.
Borders are taken for padding, zeros or not.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Self

Number = int | Fraction


@dataclass(frozen=True)
class Field:
    """The fields of the elements of an array, in pixels of the image's spatial axes.

    `steps` is, per axis of the array, how far the field moves with a step along it; `low` and
    `high` are the first and last pixel that the first element sees, which may lie in the border.
    `maps` is the field of the last maps before, where an array has no place in the image any more;
    `everywhere` says that some path sees the whole image whatever the place, such as a gate's.
    """

    steps: tuple[tuple[Number, ...], ...]
    low: tuple[Number, ...]
    high: tuple[Number, ...]
    maps: "Field | None" = None
    everywhere: bool = False

    @classmethod
    def of_images(cls, rank: int) -> Self:
        """The field of each pixel of images [N, *size, C] with `rank` axes of size."""
        zero = (0,) * rank
        places = (tuple(int(i == j) for j in range(rank)) for i in range(rank))
        return cls((zero, *places, zero), zero, zero)

    @property
    def located(self) -> bool:
        """Whether elements have a place in the image, along each of its axes."""
        return all(any(steps) for steps in zip(*self.steps, strict=True))

    @property
    def last_maps(self) -> "Field":
        """Itself, or if it has no place the field of the last maps that had one."""
        return self if self.located or self.maps is None else self.maps

    @property
    def size(self) -> tuple[int, ...]:
        """Pixels per axis, the most that an element sees."""
        sides = zip(self.low, self.high, strict=True)
        return tuple(math.floor(high - low) + 1 for low, high in sides)

    @property
    def stride(self) -> tuple[Number, ...]:
        """Pixels from element to element, per axis of the image."""
        return tuple(max(map(abs, steps)) for steps in zip(*self.steps, strict=True))

    @property
    def padding(self) -> tuple[Number, ...]:
        """Pixels of border before the image that the first element sees, per axis."""
        return tuple(-low for low in self.low)

    def moved(self, axis: int, first: Number, last: Number, stride: Number = 1) -> "Field":
        """Element p sees the elements p * stride + `first` to p * stride + `last` along `axis`."""
        step = self.steps[axis]
        ends = [(s * first, s * last) for s in step]
        low = tuple(x + min(pair) for x, pair in zip(self.low, ends, strict=True))
        high = tuple(x + max(pair) for x, pair in zip(self.high, ends, strict=True))
        steps = list(self.steps)
        steps[axis] = tuple(_plain(s * stride) for s in step)
        return replace(self, steps=tuple(steps), low=_all_plain(low), high=_all_plain(high))

    def spread(self, axes: Iterable[int], shape: Sequence[int]) -> "Field":
        """All elements along some axes are seen at once; the axes stay, without steps."""
        found = self
        for axis in axes:
            found = found.moved(axis, 0, shape[axis] - 1, 0)
        return found._remember(self)

    def arranged(self, axes: Sequence[int | None]) -> "Field":
        """Of an array whose axis i is the axis `axes[i]` of this one; None is a new axis."""
        zero = (0,) * len(self.low)
        steps = tuple(zero if axis is None else self.steps[axis] for axis in axes)
        return replace(self, steps=steps)._remember(self)

    def _remember(self, before: "Field") -> "Field":
        if before.located and not self.located:
            return replace(self, maps=replace(before, maps=None))
        return self


def join(fields: Sequence[Field], shape: Sequence[int]) -> Field:
    """The field of what is computed element by element from arrays of one shape.

    Alignment is taken into account. A path without a place beside one with a place sees
    `everywhere`, and does not count.
    """
    located = [field for field in fields if field.located]
    chosen = located or fields
    first = max(chosen, key=lambda field: sum(map(any, field.steps)))
    axes = [axis for axis, size in enumerate(shape) if size != 1]
    for other in chosen:
        if any(other.steps[axis] != first.steps[axis] for axis in axes):
            return join([field.spread(range(len(shape)), shape) for field in chosen], shape)
    everywhere = any(f.everywhere for f in fields) or len(located) not in (0, len(fields))
    return Field(
        first.steps,
        tuple(map(min, *(f.low for f in chosen), first.low)),
        tuple(map(max, *(f.high for f in chosen), first.high)),
        max((f.maps for f in chosen if f.maps), key=lambda maps: maps.size, default=None),
        everywhere,
    )


def propagate(equation: Any, fields: Sequence[Field | None]) -> list[Field | None]:
    """The fields of an equation's results; None is of what does not depend on the image."""
    if not any(fields):
        return [None] * len(equation.outvars)
    results: list[Field | None] = []
    shapes = [variable.aval.shape for variable in equation.invars]
    rule = _RULES.get(equation.primitive.name)
    for index, out in enumerate(equation.outvars):
        if rule is not None:
            found = rule(equation.params, fields, shapes, out.aval.shape, index)
        else:
            found = _by_element(fields, shapes, out.aval.shape)
        results.append(found)
    return results


def _by_element(fields: Any, shapes: Any, out: tuple[int, ...]) -> Field:
    """Element by element where shapes allow it, else as if each result saw everything."""
    known = [(f, shape) for f, shape in zip(fields, shapes, strict=True) if f is not None]
    found = []
    for field, shape in known:
        if len(shape) == len(out) and all(a in (1, b) for a, b in zip(shape, out, strict=True)):
            axes = [i if size == out[i] else None for i, size in enumerate(shape)]
            found.append(field.arranged(axes))
        else:
            whole = field.spread(range(len(shape)), shape)
            found.append(whole.arranged([None] * len(out)))
    return join(found, out)


def _convolve(params: Any, fields: Any, shapes: Any, out: Any, index: int) -> Field | None:
    spec, field = params["spec"], fields[0]
    if field is None:
        return _by_element(fields, shapes, out)
    for i, size in enumerate(spec.kernel_size):
        low, reach = spec.pads[i][0], (size - 1) * spec.dilation[i]
        field = field.moved(1 + i, -low, reach - low, spec.strides[i])
    return field.spread((len(out) - 1,), shapes[0])


def _convolve_input_gradient(params: Any, fields: Any, shapes: Any, out: Any, index: int) -> Any:
    spec, field = params["spec"], fields[0]
    if field is None:
        return _by_element(fields, shapes, out)
    for i, size in enumerate(spec.kernel_size):  # p = q * stride - low + tap * dilation
        each, stride = Fraction(1, spec.strides[i]), spec.strides[i]
        last = spec.pads[i][0] * each
        reach = (size - 1) * spec.dilation[i] // stride  # of those p that the most q give
        field = field.moved(1 + i, last - reach, last, each)
    return field.spread((len(out) - 1,), shapes[0])


def _lax_convolution(params: Any, fields: Any, shapes: Any, out: Any, index: int) -> Field:
    numbers, field = params["dimension_numbers"], fields[0]
    if field is None:
        return _by_element(fields, shapes, out)
    kernel = shapes[1]
    for i, axis in enumerate(numbers.lhs_spec[2:]):
        each = Fraction(1, params["lhs_dilation"][i])
        first = -params["padding"][i][0] * each
        reach = (kernel[numbers.rhs_spec[2 + i]] - 1) * params["rhs_dilation"][i]
        reach //= params["lhs_dilation"][i]
        field = field.moved(axis, first, first + reach, params["window_strides"][i] * each)
    field = field.spread((numbers.lhs_spec[1],), shapes[0])
    to = dict(zip(numbers.out_spec, numbers.lhs_spec, strict=True))
    return field.arranged([to[axis] for axis in range(len(out))])


def _max_of_windows(params: Any, fields: Any, shapes: Any, out: Any, index: int) -> Field:
    windows, field = params["windows"], fields[0]
    first = len(out) - 1 - len(windows.shape)
    for i, size in enumerate(windows.shape):
        low = windows.border[i][0]
        field = field.moved(first + i, -low, size - 1 - low, windows.strides[i])
    return field


def _reduce_window(params: Any, fields: Any, shapes: Any, out: Any, index: int) -> Field:
    field = fields[0]
    for axis, size in enumerate(params["window_dimensions"]):
        low = params["padding"][axis][0]
        reach = (size - 1) * params["window_dilation"][axis]
        field = field.moved(axis, -low, reach - low, params["window_strides"][axis])
    return field


def _reduce(params: Any, fields: Any, shapes: Any, out: Any, index: int) -> Field:
    axes = params["axes"]
    field = fields[0].spread(axes, shapes[0])
    return field.arranged([axis for axis in range(len(shapes[0])) if axis not in axes])


def _cumulate(params: Any, fields: Any, shapes: Any, out: Any, index: int) -> Field:
    return fields[0].spread((params["axis"],), shapes[0])


def _dot_general(params: Any, fields: Any, shapes: Any, out: Any, index: int) -> Field:
    contracted, batch = params["dimension_numbers"]
    found, start = [], len(batch[0])
    for side, field in enumerate(fields):
        free = [i for i in range(len(shapes[side])) if i not in (*contracted[side], *batch[side])]
        if field is not None:
            axes: list[int | None] = [*batch[side], *[None] * (len(out) - len(batch[side]))]
            axes[start : start + len(free)] = free
            found.append(field.spread(contracted[side], shapes[side]).arranged(axes))
        start += len(free)
    return join(found, out)


def _slice(params: Any, fields: Any, shapes: Any, out: Any, index: int) -> Field:
    field, strides = fields[0], params["strides"] or (1,) * len(out)
    for axis, (start, stride) in enumerate(zip(params["start_indices"], strides, strict=True)):
        field = field.moved(axis, start, start, stride)
    return field


def _split(params: Any, fields: Any, shapes: Any, out: Any, index: int) -> Field:
    start = sum(params["sizes"][:index])
    return fields[0].moved(params["axis"], start, start)


def _pad(params: Any, fields: Any, shapes: Any, out: Any, index: int) -> Field:
    field = fields[0]
    if field is None:
        return _by_element(fields, shapes, out)
    for axis, (low, _, between) in enumerate(params["padding_config"]):
        each = Fraction(1, between + 1)
        field = field.moved(axis, -low * each, -low * each, each)
    return field


def _reverse(params: Any, fields: Any, shapes: Any, out: Any, index: int) -> Field:
    field = fields[0]
    for axis in params["dimensions"]:
        field = field.moved(axis, out[axis] - 1, out[axis] - 1, -1)
    return field


def _concatenate(params: Any, fields: Any, shapes: Any, out: Any, index: int) -> Field:
    """Along an axis with a place the largest part counts: what is around it is a border."""
    axis, start, moved = params["dimension"], 0, []
    for field, shape in zip(fields, shapes, strict=True):
        if field is not None:
            moved.append((shape[axis], field.moved(axis, -start, -start)))
        start += shape[axis]
    if any(any(field.steps[axis]) for _, field in moved):
        moved = [max(moved, key=lambda pair: pair[0])]
    return join([field for _, field in moved], out)


def _broadcast(params: Any, fields: Any, shapes: Any, out: Any, index: int) -> Field:
    axes: list[int | None] = [None] * len(out)
    for axis, to in enumerate(params["broadcast_dimensions"]):
        if shapes[0][axis] == out[to]:  # else repeated
            axes[to] = axis
    return fields[0].arranged(axes)


def _transpose(params: Any, fields: Any, shapes: Any, out: Any, index: int) -> Field:
    return fields[0].arranged(params["permutation"])


def _squeeze(params: Any, fields: Any, shapes: Any, out: Any, index: int) -> Field:
    gone = params["dimensions"]
    return fields[0].arranged([axis for axis in range(len(shapes[0])) if axis not in gone])


def _reshape(params: Any, fields: Any, shapes: Any, out: Any, index: int) -> Field:
    """Axes that are split keep their place; of axes that are joined only the first one's, alone."""
    (shape, *_), field = shapes, fields[0]
    steps: list[tuple[Number, ...]] = [(0,) * len(field.low)] * len(out)
    lost = []
    for before, after in _group(shape, out):
        moving = [axis for axis in before if any(field.steps[axis])]
        if len(before) == 1:
            for i, axis in enumerate(after):
                weight = math.prod(out[a] for a in after[i + 1 :])
                steps[axis] = tuple(step * weight for step in field.steps[before[0]])
        else:
            lost += moving
    spread = field.spread(lost, shape)
    return replace(spread, steps=tuple(steps))._remember(field)


def _group(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Axes of two shapes that go into each other, in order, without those of size 1."""
    sides = [[axis for axis, size in enumerate(shape) if size != 1] for shape in (before, after)]
    groups = []
    while any(sides):
        left, right = [sides[0].pop(0)], [sides[1].pop(0)]
        while (a := math.prod(before[i] for i in left)) != (
            b := math.prod(after[i] for i in right)
        ):
            (left if a < b else right).append(sides[0 if a < b else 1].pop(0))
        groups.append((left, right))
    return groups


def _plain(value: Number) -> Number:
    return int(value) if value == int(value) else value


def _all_plain(values: Iterable[Number]) -> tuple[Number, ...]:
    return tuple(map(_plain, values))


_RULES: dict[str, Callable[..., Any]] = {
    "convolve": _convolve,
    "convolve_input_gradient": _convolve_input_gradient,
    "conv_general_dilated": _lax_convolution,
    "max_of_windows": _max_of_windows,
    "dot_general": _dot_general,
    "slice": _slice,
    "split": _split,
    "pad": _pad,
    "rev": _reverse,
    "concatenate": _concatenate,
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "reshape": _reshape,
}
_RULES |= dict.fromkeys(
    ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or"), _reduce
)
_RULES |= dict.fromkeys(("argmax", "argmin"), _reduce)
_RULES |= dict.fromkeys(
    ("reduce_window_max", "reduce_window_sum", "reduce_window_min"), _reduce_window
)
_RULES |= dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"), _cumulate)
