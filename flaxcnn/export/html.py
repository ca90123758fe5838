"""A trained classifier as one HTML file, which computes it in JavaScript."""

import base64
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from flaxcnn.errors import UserError
from flaxcnn.export.graph import Graph, trace
from flaxcnn.models import fold_batch_norm

LIMIT = 10_000_000  # bytes of a page
WEIGHTS = ("auto", "float32", "float16")
_FOLDER = Path(__file__).parent
_SOURCES = ("page.html.j2", "page.css", "network.js", "image.js", "page.js")
_HALF_MAX = float(np.finfo(np.float16).max)


@dataclasses.dataclass(frozen=True)
class Sample:
    """An image that the page offers: uint8 [H, W, C] of the network's size, and its class."""

    image: np.ndarray
    label: str


@dataclasses.dataclass(frozen=True)
class Page:
    """What a page says and shows beside the network.

    `mean` and `std`, per channel, are for pixels scaled to 0..1. `resize` ("crop", "stretch" or
    "pad") is how photographs reach the network's size, as in `data.resize`. A network with one
    output has two classes, and gives the logit of the second.
    """

    title: str
    class_names: Sequence[str]
    mean: Sequence[float]
    std: Sequence[float]
    resize: str = "crop"
    samples: Sequence[Sample] = ()


def export_html(
    path: str | Path,
    model: nn.Module,
    variables: Mapping[str, Any],
    input_shape: Sequence[int],
    page: Page,
    weights: str = "auto",
) -> str:
    """Writes the network and what it needs to one HTML file; returns the type of its weights.

    The network, any Linen module called `apply(variables, images, train=False)`, maps images
    [1, *input_shape] to logits. BatchNorm is folded, and all is computed in float32. With "float16"
    kernels are rounded to 16 bits (`round_weights`); "auto" does so if the page is too large else.

    Raises UserError if the page is larger than `LIMIT`, or the network has an operation that the
    page cannot compute; nothing is written then.
    """
    if weights not in WEIGHTS:
        raise UserError(f"weights is {weights!r}, and must be {', '.join(WEIGHTS)}")
    if input_shape[-1] not in (1, 3):
        raise UserError(f"images have {input_shape[-1]} channels, and a page takes 1 or 3")
    model, variables = prepare(model, variables, input_shape)
    chosen = "float16" if weights == "float16" else "float32"
    text = _make_text(model, variables, input_shape, page, chosen)
    if weights == "auto" and len(text) > LIMIT:
        chosen = "float16"
        text = _make_text(model, variables, input_shape, page, chosen)
    if len(text) > LIMIT:
        raise UserError(
            f"the page would have {len(text) / 1e6:.1f} MB with {chosen} weights, "
            f"and the limit is {LIMIT / 1e6:g} MB"
        )
    Path(path).write_bytes(text)
    return chosen


def _make_text(
    model: nn.Module, variables: Any, input_shape: Sequence[int], page: Page, weights: str
) -> bytes:
    if weights == "float16":
        variables = round_weights(variables)
    graph = trace(lambda v, x: model.apply(v, x, train=False), variables, input_shape)
    return render(graph, page, weights).encode()


def prepare(
    model: nn.Module, variables: Mapping[str, Any], input_shape: Sequence[int]
) -> tuple[nn.Module, dict[str, Any]]:
    """The network as a page computes it: in float32, with BatchNorm folded."""
    if getattr(model, "dtype", None) not in (None, jnp.float32):
        model = model.clone(dtype=jnp.float32)
    return fold_batch_norm(model, variables, input_shape)


def round_weights(variables: Mapping[str, Any]) -> Any:
    """Rounds kernels to 16 bits, which stay arrays of float32.

    Parameters of one axis (biases) stay as they are, and so do kernels with values that float16
    does not reach.
    """

    def round_one(x: Any) -> Any:
        kernel = x.ndim > 1 and bool((np.abs(x) < _HALF_MAX).all())
        return np.asarray(x, np.float16).astype(np.float32) if kernel else x

    return dict(variables) | {"params": jax.tree.map(round_one, variables["params"])}


def render(graph: Graph, page: Page, weights: str) -> str:
    """The page's text."""
    from jinja2 import StrictUndefined, Template

    outputs, classes = math.prod(graph.nodes[graph.output - 1].shape), len(page.class_names)
    if outputs != classes and (outputs, classes) != (1, 2):
        raise UserError(f"the network has {outputs} outputs, and there are {classes} class names")
    blob, constants = pack_constants(graph.constants)
    network = {
        "input": graph.input_shape[1:],
        "mean": [float(x) for x in page.mean],
        "std": [float(x) for x in page.std],
        "resize": page.resize,
        "classes": list(page.class_names),
        "drawing": _find_drawing(page.samples),
        "output": graph.output,
        "maps": graph.maps,
        "mapsShape": None if graph.maps is None else graph.nodes[graph.maps - 1].shape,
        "constants": constants,
        "nodes": [
            {"op": x.op, "inputs": x.inputs, "shapes": x.shapes, "shape": x.shape, **x.attributes}
            for x in graph.nodes
        ],
    }
    source = {name: (_FOLDER / name).read_text(encoding="utf-8") for name in _SOURCES}
    template = Template(source["page.html.j2"], autoescape=True, undefined=StrictUndefined)
    return template.render(
        page=page,
        input_shape=graph.input_shape[1:],
        parameters=sum(x.size for x in graph.constants),
        weights=weights,
        network=_to_json(network),
        samples=_to_json([_encode_sample(sample) for sample in page.samples]),
        blob=base64.b64encode(blob).decode(),
        source=source,
    )


def pack_constants(constants: Sequence[np.ndarray]) -> tuple[bytes, list[dict[str, Any]]]:
    """One block of bytes, and each constant's place in it: float16 where that loses nothing."""
    halves = {}
    for index, x in enumerate(constants):
        with np.errstate(over="ignore"):
            half = x.astype("<f2")
        if x.size > 1 and (half.astype(np.float32) == x).all():
            halves[index] = half
    blob, places = bytearray(), [{}] * len(constants)
    order = sorted(range(len(constants)), key=lambda index: index in halves)  # float32 is aligned
    for index in order:
        x = constants[index]
        kind = "float16" if index in halves else "float32"
        places[index] = {"type": kind, "offset": len(blob), "size": x.size}
        blob += halves.get(index, x.astype("<f4")).tobytes()
    return bytes(blob), places


def _find_drawing(samples: Sequence[Sample]) -> dict[str, Any]:
    """How the images of a set of drawings fill their frame, which what is drawn is made to do.

    `part` of the frame is the longer side of the ink and `stroke` the width of a line, those of
    MNIST if there are no samples; `dark` says whether the ink is dark.
    """
    images = [np.asarray(sample.image, np.float32).mean(-1) / 255 for sample in samples]
    if not images:
        return {"part": 20 / 28, "stroke": 0.1, "dark": False}
    border = [np.concatenate([x[0], x[-1], x[:, 0], x[:, -1]]) for x in images]
    dark = bool(np.median(border) > 0.5)
    parts, widths = [], []
    for x in images:
        ink = np.pad(1 - x if dark else x, 1)
        sides = [np.flatnonzero((ink > 1 / 8).any(axis)) for axis in (1, 0)]
        if len(sides[0]):
            parts.append(max(np.ptp(line) + 1 for line in sides) / max(x.shape))
            # A line of length l and width w has the area l w, and edges of length 2 l; the sums
            # along both axes measure edges of all directions longer by 4 / pi.
            edges = sum(np.abs(np.diff(ink, axis=axis)).sum() for axis in (0, 1)) * np.pi / 4
            widths.append(2 * ink.sum() / edges / max(x.shape))
    part, stroke = (float(np.median(x)) if x else 0.5 for x in (parts, widths))
    return {"part": part, "stroke": min(stroke, part / 2), "dark": dark}


def _encode_sample(sample: Sample) -> dict[str, str]:
    pixels = np.ascontiguousarray(sample.image, np.uint8).tobytes()
    return {"label": sample.label, "pixels": base64.b64encode(pixels).decode()}


def _to_json(value: Any) -> str:
    """JSON that can stand in a script: no tag begins or ends in it, and infinities are strings."""

    def finite(x: Any) -> Any:
        if isinstance(x, dict):
            return {key: finite(item) for key, item in x.items()}
        if isinstance(x, list | tuple):
            return [finite(item) for item in x]
        x = x.item() if isinstance(x, np.generic) else x  # sizes may be NumPy's integers
        return str(x).replace("inf", "Infinity") if x in (math.inf, -math.inf) else x

    return json.dumps(finite(value), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
