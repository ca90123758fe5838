"""Which pretrained weights there are: the table in catalogue.json."""

import dataclasses
import difflib
import fnmatch
import functools
import json
from importlib import resources
from typing import Any

from flaxcnn.errors import UserError

# Licences under which weights may be used for anything, commercially too.
PERMISSIVE = ("apache-2.0", "bsd-3-clause", "cc-by-4.0", "mit")


@dataclasses.dataclass(frozen=True)
class Entry:
    """Weights that are published, and what is known of them; "", 0 or None is unknown.

    `preprocessing` has the keys of timm's `pretrained_cfg`; `mean` and `std` are of pixels in 0..1,
    in RGB's order. Its `channels` is "BGR" where the network sees the channels in that order.
    """

    name: str  # published as, without the tag: "seresnext50_32x4d" of timm
    tag: str  # "a1_in1k"
    model: str  # our name of the network: "seresnext50_32x4d_timm"
    layout: str  # whose names the tensors have: "timm", "torchvision", "keras"
    source: str  # "hf://user/repo[@revision]" or a URL, as `hub.fetch` takes it
    file: str = ""  # in a repository
    sha256: str = ""  # or what of it is published: the first 8 digits
    size: int = 0  # bytes
    licence: str = ""
    top1: float | None = None  # percent, on ImageNet's validation images, as published
    preprocessing: dict[str, Any] = dataclasses.field(default_factory=dict)
    classes: str = "imagenet1k"  # see `labels.class_names`
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)  # of `create_model`

    @property
    def full_name(self) -> str:
        """As users name it: "resnet50.a1_in1k"."""
        return f"{self.name}.{self.tag}"


def find_entry(name: str) -> Entry:
    """The weights that are called "NETWORK.TAG", such as "resnet50.a1_in1k".

    The network may also be called by our name of it. Without a tag it must have only one. Raises
    UserError with the closest names.
    """
    entries = _read()
    found = [e for e in entries if name in (e.full_name, f"{e.model}.{e.tag}")]
    found = found or [e for e in entries if name in (e.name, e.model)]
    if len(found) == 1:
        return found[0]
    exact = [e for e in found if name == e.full_name]
    if exact:
        return exact[0]
    if found:
        tags = ", ".join(e.full_name for e in found)
        raise UserError(f"there are several pretrained weights for {name}: {tags}")
    names = [e.full_name for e in entries]
    longer = [known for known in names if name.lower() in known]
    close = longer[:5] or difflib.get_close_matches(name, names, n=5, cutoff=0.5)
    hint = f"did you mean {', '.join(close)}?" if close else "see `flaxcnn list --pretrained`"
    raise UserError(f"no pretrained weights are called {name!r}: {hint}")


def list_entries(pattern: str = "", licence: str = "") -> list[Entry]:
    """The entries whose name has `pattern` in it, or matches it as a shell pattern, in its order.

    `licence` is one of the table's, such as "apache-2.0", or "permissive" for those of PERMISSIVE.
    Raises UserError for a licence that no entry has.
    """
    entries = _read()
    licences = PERMISSIVE if licence == "permissive" else (licence,)
    if licence and not any(e.licence in licences for e in entries):
        known = ", ".join(sorted({e.licence for e in entries} - {""}))
        raise UserError(f"no weights have the licence {licence!r}: permissive, {known}")
    shell = pattern if set(pattern) & set("*?[") else f"*{pattern}*"
    return [
        e
        for e in entries
        if fnmatch.fnmatchcase(e.full_name, shell) and (not licence or e.licence in licences)
    ]


def timm_name(model: str) -> str:
    """What timm calls the network that we call `model`; "" if it does not have it."""
    return _read_table()["timm"].get(model, "")


def model_of_timm(architecture: str) -> str:
    """Our name of the network that timm calls `architecture`; "" if we do not have it."""
    names = _read_table()["timm"]
    return next((ours for ours, theirs in names.items() if theirs == architecture), "")


@functools.cache
def _read() -> list[Entry]:
    """The entries; each names a preprocessing, which is written down once, and its input sizes."""
    entries = []
    for row in map(dict, _read_table()["entries"]):
        preprocessing = row.pop("input") | _read_table()["preprocessing"][row.pop("preprocessing")]
        entries.append(Entry(**row, preprocessing=preprocessing))
    return entries


@functools.cache
def _read_table() -> dict[str, Any]:
    return json.loads(resources.files("flaxcnn.weights").joinpath("catalogue.json").read_text())
