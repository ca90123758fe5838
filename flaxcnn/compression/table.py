"""Bytes of a compressed network by layer and stage, of the whole file."""

import lzma
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from flaxcnn.compression.encode import Encoded, find_symbols, list_gaps

Array = np.ndarray


class Row(NamedTuple):
    """Bytes of one tensor, or of the rest of a file; 0 where a stage has none.

    Attributes:
      weights: how many there are, and `kept` those that are not 0.
      float32: as the network was trained, and what xz makes of that; `int8_xz` in 8 bits.
      pruned: weights that are left, 32 bits each, and their gaps in the bits that take least.
      shared: numbers in the codebook instead, and the codebook.
      coded: in the file.
    """

    name: str
    weights: int
    kept: int
    float32: int
    xz: int
    int8_xz: int
    pruned: int
    shared: int
    coded: int


def make_table(before: Mapping[str, Any], after: Mapping[str, Any], file: Encoded) -> list[Row]:
    """A row for each tensor that is coded, for the plain ones, and for the rest of the file.

    `before` and `after` are variables as they were trained and as they are in the file. The last
    row is the sum: its `coded` is the file's size.
    """
    flat = {name: np.asarray(x, np.float32) for name, x in _flatten(before).items()}
    final = {name: np.asarray(x, np.float32) for name, x in _flatten(after).items()}
    rows = [
        _measure(name.removeprefix("params/"), flat[name], final[name], file.tensors[name])
        for name in file.tensors
    ]
    plain = [name for name in flat if name not in file.tensors]
    if plain:
        joined = np.concatenate([flat[name].reshape(-1) for name in plain])
        size, kept = joined.nbytes, int(np.count_nonzero(joined))
        packed = _measure_packed(joined)
        rows.append(Row("biases, norms", joined.size, kept, size, *packed, size, size, file.plain))
    rest = len(file.data) - sum(row.coded for row in rows)
    rows.append(Row("header, code tables", 0, 0, 0, 0, 0, 0, 0, rest))
    sums = zip(*(row[1:] for row in rows), strict=True)
    return [*rows, Row("whole file", *map(sum, sums))]


def _measure(name: str, before: Array, after: Array, coded: int) -> Row:
    symbols = find_symbols(after)
    assert symbols is not None  # as it is coded
    flat = after.reshape(-1)
    places = np.flatnonzero(flat)
    size, values = before.nbytes, len(symbols.codebook)
    widths = range(1, 9)
    slots = [0 if len(places) == flat.size else len(list_gaps(places, 2**b - 1)) for b in widths]

    def least(bits: int) -> int:
        dense = flat.size * (bits if len(places) == flat.size or bits == 32 else bits + 1)
        sparse = (n * (bits + b) for n, b in zip(slots, widths, strict=True) if n)
        return math.ceil(min(dense, *sparse) / 8) if any(slots) else math.ceil(dense / 8)

    bits = max(1, math.ceil(math.log2(values)))
    shared = least(bits) + 4 * values
    packed = _measure_packed(before.reshape(-1))
    return Row(name, flat.size, len(places), size, *packed, least(32), shared, coded)


def _measure_packed(array: Array) -> tuple[int, int]:
    """Bytes by xz, and by xz of the nearest of 255 steps up to the largest magnitude."""
    scale = float(np.abs(array).max(initial=0)) / 127 or 1.0
    steps = np.rint(array / scale).astype(np.int8)
    return _xz(array.tobytes()), _xz(steps.tobytes()) + 4


def _xz(data: bytes) -> int:
    return len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))


def format_table(rows: Sequence[Row], paper: Mapping[str, int] | None = None) -> str:
    """The table in Markdown; `paper` has the bytes of some rows in the paper."""
    head = ["layer", "weights", "kept", "float32", "xz of float32", "int8 + xz", "pruned", "shared"]
    head += ["in the file", *(["paper"] if paper else [])]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for row in rows:
        kept = f"{row.kept / row.weights:.1%}" if row.weights else ""
        sizes = [f"{size:,}" if size else "" for size in row[3:]]
        cells = [row.name, f"{row.weights:,}" if row.weights else "", kept, *sizes]
        if paper:
            cells.append(f"{paper[row.name]:,}" if row.name in paper else "")
        lines.append(cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    return traverse_util.flatten_dict(tree, sep="/")  # pyright: ignore[reportReturnType]
