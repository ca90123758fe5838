"""A summary as text for a terminal, and as a table in Markdown."""

from collections.abc import Sequence

from flaxcnn.analysis.summary import Layer, Summary

_COLUMNS = ("layer", "type", "output", "parameters", "multiply-adds", "field", "stride")
_LEFT = 3  # columns of words; those after them are of numbers


def format_text(found: Summary) -> str:
    """Columns of layers, then the totals."""
    rows = [_COLUMNS, *map(_cells, found.layers)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            f"{cell:<{width}}" if i < _LEFT else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    totals = _totals(found)
    width = max(len(name) for name, _ in totals)
    return "\n".join(
        [*lines, "", *(f"{name:<{width}}  {value}" for name, value in totals), "", _NOTE]
    )


def format_markdown(found: Summary) -> str:
    """The same as two tables."""

    def table(rows: Sequence[Sequence[str]], right: int) -> list[str]:
        marks = ["---" if i < right else "---:" for i in range(len(rows[0]))]
        return [f"| {' | '.join(row)} |" for row in (rows[0], marks, *rows[1:])]

    layers = table([_COLUMNS, *map(_cells, found.layers)], _LEFT)
    totals = table([("total", ""), *_totals(found)], 2)
    return "\n".join([*layers, "", *totals, "", _NOTE])


_NOTE = "* the value depends on the whole image as well, by a gate or after a global layer"


def _cells(layer: Layer) -> tuple[str, ...]:
    field = ""
    if layer.receptive_field is not None:
        field = _sides(layer.receptive_field) + "*" * layer.everywhere
    stride = _sides(layer.stride) if layer.stride is not None and layer.located else ""
    params = layer.params + layer.statistics
    return (
        layer.path or "(the network itself)",
        layer.type + " (training)" * layer.training_only,
        " x ".join(map(str, layer.output_shape)),
        f"{params:,}" if params else "",
        f"{layer.multiply_adds:,}" if layer.multiply_adds else "",
        field,
        stride,
    )


def _totals(found: Summary) -> list[tuple[str, str]]:
    images = "an image" if found.batch == 1 else f"{found.batch} images"
    field = "" if found.receptive_field is None else _sides(found.receptive_field)
    return [
        ("network", f"{found.network}, images {' x '.join(map(str, found.input_shape))}"),
        ("parameters", f"{found.params:,} trainable, {found.statistics:,} not"),
        ("weights", _bytes(found.weight_bytes)),
        ("multiply-adds", f"{found.multiply_adds:,} forward, {_flops(found.flops)}"),
        (
            "training",
            f"{found.training_multiply_adds:,}, of them {found.backward_multiply_adds:,} "
            f"backward, {_flops(found.training_flops)}",
        ),
        (
            f"activations of {images}",
            f"{_bytes(found.activation_bytes)} at most in inference, "
            f"{_bytes(found.training_activation_bytes)} kept in training",
        ),
        ("receptive field", f"{field or 'none'} pixels, of the last maps"),
    ]


def _sides(sizes: Sequence[float]) -> str:
    words = [f"{size:g}" for size in sizes]
    return words[0] if len(set(words)) == 1 else " x ".join(words)


def _flops(count: int) -> str:
    return f"{count / 1e9:,.2f} GFLOP" if count >= 1e8 else f"{count / 1e6:,.2f} MFLOP"


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:,.2f} {unit}"
    return f"{count / 1e3:,.1f} kB"
