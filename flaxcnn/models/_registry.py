"""Networks by name."""

import dataclasses
import difflib
import fnmatch
import importlib
import os
import pkgutil
from typing import Any

from flax import linen as nn

from flaxcnn.errors import UserError
from flaxcnn.models._deviation import Deviation
from flaxcnn.models._variant import Variant

VARIANTS: dict[str, Variant] = {}
ALIASES: dict[str, str] = {}  # other names in use -> ours
DEVIATIONS: list[Deviation] = []  # where papers and ports differ
for _file in pkgutil.iter_modules([os.path.dirname(__file__)]):
    if not _file.name.startswith("_"):  # a family, whose classes `flaxcnn.models` exports
        _family = importlib.import_module(f"flaxcnn.models.{_file.name}")
        VARIANTS |= _family.VARIANTS
        ALIASES |= getattr(_family, "ALIASES", {})
        DEVIATIONS += getattr(_family, "DEVIATIONS", ())


def list_models(pattern: str = "*") -> list[str]:
    """Names of the networks that match a shell pattern such as "mnist_*", sorted.

    Aliases, which `create_model` knows too, are not listed.
    """
    return sorted(fnmatch.filter(VARIANTS, pattern))


def variant(name: str) -> Variant:
    """Looks up what is known of a network, by its name or an alias: arguments, input, size.

    Raises UserError with the closest names if there is no such network.
    """
    name = ALIASES.get(name, name)
    if name not in VARIANTS:
        longer = [known for known in sorted(VARIANTS) if name.lower() in known]
        close = longer[:5] or difflib.get_close_matches(name, VARIANTS, cutoff=0.4)
        hint = f"did you mean {', '.join(close)}?" if close else "see flaxcnn.list_models()"
        raise UserError(f"unknown model {name!r}: {hint}")
    return VARIANTS[name]


def create_model(name: str, **kwargs: Any) -> nn.Module:
    """Makes the named network, with `kwargs` instead of its own arguments.

    Every network takes `num_classes` (0: features instead of logits), `dtype` (of the
    computation; parameters and logits stay float32) and `axis_name` (the `pmap` axis over which
    batch statistics are global); those from AlexNet on also `features_only` and `out_indices` (see
    `Network`). Lists, as a JSON file has them, become tuples, so that every network hashes.
    Published weights are loaded by `flaxcnn.from_pretrained`. Raises UserError for an unknown name
    or argument.
    """
    chosen = variant(name)
    fields = dataclasses.fields(chosen.network)  # pyright: ignore[reportArgumentType]
    known = [field.name for field in fields if field.name not in ("parent", "name")]
    for argument in kwargs:
        if argument in ("pretrained", "weights"):
            raise UserError(
                f"create_model makes a network without weights, and has no {argument}: "
                f'flaxcnn.from_pretrained("{name}.TAG") loads them (`flaxcnn list --pretrained`)'
            )
        if argument not in known:
            raise UserError(
                f"model {name!r} has no argument {argument!r}: it takes {', '.join(known)}"
            )
    kwargs = {key: tuple(x) if isinstance(x, list) else x for key, x in kwargs.items()}
    return chosen.network(**{**chosen.kwargs, **kwargs})
