"""Which library's names the tensors of a file have."""

from collections.abc import Mapping
from typing import Any

from flaxcnn.errors import UserError
from flaxcnn.models._registry import create_model
from flaxcnn.weights.convert import list_layouts, list_sources, rename_tensors


def find_layout(name: str, tensors: Mapping[str, Any], **kwargs: Any) -> str:
    """Finds the layout of the named network whose names `tensors` have, for `convert`.

    `tensors` and `kwargs` are as in `convert`; of layouts with the same names the first is given.
    Shapes are not compared, which is `convert`'s to do.

    Raises UserError where no layout of the network has at least half of its names in `tensors`.
    """
    if any(str(n).startswith("params/") for n in tensors):
        return "flaxcnn"
    model = create_model(name, **kwargs)
    shares: dict[str, float] = {}
    examples = []
    for layout in list_layouts(model):
        try:
            sources = list_sources(name, model, layout)
        except UserError:  # a form that this library does not have
            continue
        needed = [n for source in sources.values() for n in source.their_shapes]
        found = rename_tensors(model, layout, tensors)
        shares[layout] = sum(n in found for n in needed) / len(needed)
        examples.append(f"{layout} has {needed[0]}")
    best = max(shares, key=lambda layout: shares[layout], default="")
    if shares.get(best, 0) < 0.5:
        given = ", ".join(str(n)[:60] for n in list(tensors)[:3]) or "none"
        known = ", ".join(examples) or "it has none"
        raise UserError(f"weights for {name}: the names ({given}, ...) fit no layout: {known}")
    return best
