"""Darknet's .weights: float32 numbers in the order of the layers in a .cfg, without names.

For each convolution its biases, with BatchNorm the scales, running means and variances, then the
kernel, [O, I, h, w] (convolutional_layer.c, parser.c). The names given here are "0.weights",
"0.biases", "0.scales", "0.rolling_mean" and "0.rolling_variance" of the first convolution.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flaxcnn.errors import UserError

Array = np.ndarray

MAX_LAYERS = 10_000
_NO_CHANGE = ("cost", "detection", "dropout", "region", "shortcut", "softmax", "upsample", "yolo")
_SAME_CHANNELS = (*_NO_CHANGE, "avgpool", "maxpool")
_NORM = ("scales", "rolling_mean", "rolling_variance")


class Section(NamedTuple):
    """A part of a .cfg: the name in brackets, and what it sets."""

    kind: str
    options: dict[str, str]

    def number(self, name: str, default: int) -> int:
        """An option that is a whole number."""
        return _to_int(self.options.get(name, str(default)), f"[{self.kind}] {name}")


def parse_cfg(text: str) -> list[Section]:
    """The sections of a .cfg, the first of which is [net]. Raises UserError for another text."""
    sections: list[Section] = []
    for line in text.splitlines():
        line = line.strip()
        if not line or line[0] in "#;":
            continue
        if line[0] == "[":
            if line[-1] != "]":
                raise UserError(f"its line {line[:40]!r} is no section")
            sections.append(Section(line[1:-1], {}))
            continue
        name, equals, value = line.partition("=")
        if not (equals and sections):
            raise UserError(f"its line {line[:40]!r} is no option of a section")
        sections[-1].options[name.strip()] = value.strip()
    if not sections or sections[0].kind not in ("net", "network"):
        raise UserError("it is no Darknet .cfg: it does not begin with [net]")
    if len(sections) > MAX_LAYERS:
        raise UserError(f"it has more than {MAX_LAYERS} layers")
    return sections


def list_tensors(sections: Sequence[Section]) -> dict[str, tuple[int, ...]]:
    """The names and shapes of the tensors in a .weights, in their order.

    Raises UserError for layers with weights that are no convolutions, and for a route to nowhere.
    """
    channels = [sections[0].number("channels", 3)]  # of the image, then of each layer
    tensors: dict[str, tuple[int, ...]] = {}
    convolutions = 0
    for index, section in enumerate(sections[1:]):
        before = channels[-1]
        if section.kind in ("convolutional", "conv"):
            tensors |= _list_convolution(section, before, f"{convolutions}.")
            convolutions += 1
            channels.append(section.number("filters", 1))
        elif section.kind == "route":
            channels.append(sum(channels[1 + i] for i in _find_routes(section, index)))
        elif section.kind == "reorg":
            channels.append(before * section.number("stride", 1) ** 2)
        elif section.kind in _SAME_CHANNELS:
            channels.append(before)
        else:
            raise UserError(f"its layer {index} is [{section.kind}], which is not read")
    return tensors


def _list_convolution(section: Section, channels: int, prefix: str) -> dict[str, tuple[int, ...]]:
    filters, size = section.number("filters", 1), section.number("size", 1)
    groups = section.number("groups", 1)
    if min(filters, size, groups) < 1 or channels % groups or channels < 1:
        raise UserError(f"its convolution {prefix[:-1]} has {filters} filters in {groups} groups")
    leaves = ("biases", *_NORM) if section.number("batch_normalize", 0) else ("biases",)
    shapes: dict[str, tuple[int, ...]] = {prefix + leaf: (filters,) for leaf in leaves}
    return shapes | {prefix + "weights": (filters, channels // groups, size, size)}


def _find_routes(section: Section, index: int) -> list[int]:
    """The layers that a [route], the `index`-th layer, puts together."""
    layers = [_to_int(x, "[route] layers") for x in section.options.get("layers", "").split(",")]
    layers = [x if x >= 0 else index + x for x in layers]
    if not all(0 <= x < index for x in layers):
        raise UserError(f"its layer {index} is a [route] from layers that are not before it")
    return layers


def read(path: Path, cfg: Path | None = None) -> dict[str, Array]:
    """Reads a .weights with its .cfg, by default the file of the same name beside it.

    A file may end after any convolution, as those for the first layers do. Raises UserError where
    there is no .cfg, or it is not this file's.
    """
    cfg = cfg or path.with_suffix(".cfg")
    if not cfg.is_file():
        raise UserError(f"Darknet's weights have no names or shapes: {cfg.name} is not beside it")
    try:
        tensors = list_tensors(parse_cfg(cfg.read_text(errors="replace")))
    except UserError as error:
        raise UserError(f"of its {cfg.name}: {error}") from None
    begin = _read_header(path)
    numbers, rest = divmod(path.stat().st_size - begin, 4)
    needed = sum(math.prod(shape) for shape in tensors.values())
    if rest or numbers > needed:
        raise UserError(f"{cfg.name} asks for {begin + 4 * needed} bytes, and it has others")
    values = np.memmap(path, "<f4", "r", begin) if numbers else np.zeros(0, np.float32)
    arrays, place = {}, 0
    for name, shape in tensors.items():
        count = math.prod(shape)
        if place == numbers and name.endswith("biases"):
            return arrays
        if place + count > numbers:
            raise UserError(f"it is cut short: {cfg.name} asks for {begin + 4 * needed} bytes")
        arrays[name] = np.asarray(values[place : place + count]).reshape(shape)
        place += count
    return arrays


def _read_header(path: Path) -> int:
    """The length of the header: three numbers for the version, and how many images were seen."""
    with path.open("rb") as stream:
        header = np.frombuffer(stream.read(12), "<i4")
    if len(header) < 3:
        raise UserError("it is cut short: its header is not whole")
    major, minor, _ = (int(x) for x in header)
    if not (0 <= major < 1000 and 0 <= minor < 1000):
        raise UserError("it is no Darknet file: its header has no version")
    length = 20 if major * 10 + minor >= 2 else 16
    if path.stat().st_size < length:
        raise UserError("it is cut short: its header is not whole")
    return length


def write(path: Path, cfg: str, tensors: Mapping[str, Array], seen: int = 0) -> None:
    """Writes a .weights for the text of a .cfg, as Darknet of version 0.2 does.

    `seen` is how many images the network was trained on, by which Darknet goes on to train. Raises
    UserError unless `tensors` are those of the .cfg.
    """
    shapes = list_tensors(parse_cfg(cfg))
    given = {name: np.shape(tensor) for name, tensor in tensors.items()}
    different = [n for n in (*shapes, *given) if given.get(n) != shapes.get(n)]
    if different:
        raise UserError(f"weights: the .cfg and the tensors do not agree in {different[0]}")
    with path.open("wb") as stream:
        stream.write(np.array([0, 2, 0], "<i4").tobytes() + np.array([seen], "<i8").tobytes())
        for name in shapes:
            stream.write(np.ascontiguousarray(tensors[name], "<f4").tobytes())


def _to_int(text: str, name: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UserError(f"{name} is {text[:20]!r}, and no whole number") from None
