"""The weights that a run starts with, as `model.weights` names them.

    tv_in1k, hf://user/repo, https://...#sha256=..., file:PATH[,layout=...]    see `from_pretrained`
    run:WORKDIR[,checkpoint=last]                                    another run's best checkpoint
    run:previous                                       in `stages`, the run of the stage before
    ...,partial=true            only the parameters that have the name and shape of the network's
    ...,into=backbone           of the classifier that a network for another task stands on

They are loaded once, at step 0: a run that has a checkpoint resumes without them.
"""

import dataclasses
import functools
import hashlib
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
from flax import traverse_util

from flaxcnn.data.record import listing
from flaxcnn.errors import UserError
from flaxcnn.models._registry import ALIASES, create_model, variant
from flaxcnn.training.config import Config
from flaxcnn.training.state import hash_tree
from flaxcnn.training.weights_spec import parse_spec
from flaxcnn.weights.convert import trace_shapes
from flaxcnn.weights.preprocessing import Preprocessing
from flaxcnn.weights.pretrained import Located, load_variables, locate


@dataclasses.dataclass(frozen=True)
class Start:
    """What is known of the weights that a run starts with.

    Attributes:
      source: where they come from, in a few words.
      sha256: of their file, or of a run's variables.
      preprocessing: what images were made into for them; None where nobody says.
      class_names: in the order of their logits; () where nobody says.
      kwargs: arguments of the network that they need.
    """

    source: str
    sha256: str = ""
    preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] = ()
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """What run.json holds of it: all but the names, which only the start compares."""
        values = dataclasses.asdict(self)
        del values["class_names"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Start":
        """The inverse of `to_dict`."""
        pixels = values["preprocessing"]
        if pixels is not None:
            lists = {k: tuple(x) for k, x in pixels.items() if isinstance(x, list)}
            pixels = Preprocessing(**{**pixels, **lists})
        return cls(**{**values, "preprocessing": pixels})


def find_reading(config: Config, start: Start | None) -> Preprocessing | None:
    """What makes images as the weights want them, with `data.normalization="weights"`; else None.

    `data.image_size`, `data.resize` other than "crop", and `data.channels` come before theirs.
    Raises UserError if nobody says what they want.
    """
    data = config.data
    if data.normalization != "weights":
        return None
    if start is None or start.preprocessing is None:
        source = start.source if start else config.model.weights
        raise UserError(
            f"data.normalization=weights: {source} does not say what images are made into: give "
            "(mean, std)"
        )
    reading = start.preprocessing
    if data.image_size:
        height, width = data.image_size
        reading = dataclasses.replace(reading, image_size=(int(height), int(width)))
    if data.resize != "crop":
        reading = dataclasses.replace(reading, resize=data.resize)
    return reading.for_channels(data.channels) if data.channels else reading


class Source:
    """The weights of a config's `model.weights`: what is known of them, and themselves.

    `folder` is that of the run that starts with them. Raises UserError where they are not found,
    or are another network's.
    """

    def __init__(self, config: Config, folder: Path | None = None):
        self.spec, self._name = parse_spec(config.model.weights), config.model.name
        self._loaded: dict[str, Any] = {}
        self._kwargs = {k: x for k, x in config.model.kwargs.items() if k != "num_classes"}
        self._above: Any = None  # the network that takes another's weights into its backbone
        if self.spec.into:
            self._above = create_model(self._name, num_classes=1, **self._kwargs)
            if not getattr(self._above, "classifier", ""):
                raise UserError(
                    f"model.weights={config.model.weights!r}: {self._name} has no backbone"
                )
            self._name, self._kwargs = self._above.classifier, {}
        kind, _, place = self.spec.source.partition(":")
        self._path: Path | None = None  # of a run
        if kind == "run":
            self._path = Path(place)
        elif kind == "previous":
            if folder is None:
                raise UserError(f"model.weights={self.spec.source!r} is of a stage of a run")
            self._path = folder.absolute().parent / place

    @functools.cached_property
    def _run(self) -> Any:
        from flaxcnn.training.inference import load_run  # which needs what is here

        assert self._path is not None
        run = load_run(self._path, self.spec.checkpoint)
        theirs = run.config.model.name
        if not _same(theirs, self._name) and not self.spec.partial:
            raise UserError(
                f"model.weights: {self.spec.source} is a run of {theirs}, not of {self._name}: "
                "add ,partial=true to take the parameters of the same name and shape"
            )
        return run

    @functools.cached_property
    def _located(self) -> Located:
        anyone = self.spec.partial and not self.spec.into and self._tagged
        return locate(self.spec.source, "" if anyone else self._name)

    @property
    def _tagged(self) -> bool:
        """Whether the source names its network itself."""
        return "." in self.spec.source and ":" not in self.spec.source

    @functools.cached_property
    def start(self) -> Start:
        """What is known of them."""
        if self._path is None:
            found = self._located
            with open(found.path, "rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            kwargs = {k: x for k, x in found.kwargs.items() if k != "num_classes"}
            if not _same(found.model_name, self._name):
                kwargs = {}
            source = found.description or self.spec.source
            return Start(source, sha256, found.preprocessing, found.class_names, kwargs)
        run = self._run
        same = _same(run.config.model.name, self._name)
        return Start(
            f"{self.spec.source}, step {run.step}",
            hash_tree(run.variables),
            run.preprocessing,
            tuple(run.facts.class_names),
            run.facts.start.kwargs if same and run.facts.start else {},
        )

    def load(self, channels: int) -> dict[str, Any]:
        """The variables for images of so many channels, with the head that they have.

        What was adapted is said on stderr, once.
        """
        if not self._loaded:
            loaded = self._load(channels)
            self._loaded = self._above.adopt(loaded) if self._above else loaded
        return self._loaded

    def _load(self, channels: int) -> dict[str, Any]:
        if self._path is not None:
            return {name: jax.device_get(tree) for name, tree in self._run.variables.items()}
        of_network = variant(self._located.model_name).input_shape[2]
        kwargs: Any = {} if self.spec.partial else self._kwargs
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            variables, _ = load_variables(
                self._located,
                self._located.model_name,
                in_channels=None if channels == of_network else channels,
                new_head=True,  # which is not taken, as one for other classes is not
                **kwargs,
            )
        for warning in caught:
            print(f"model.weights: {warning.message}", file=sys.stderr)
        return variables


def _same(one: str, other: str) -> bool:
    """Whether two names are of one network."""
    return ALIASES.get(one, one) == ALIASES.get(other, other)


@dataclasses.dataclass(frozen=True)
class Match:
    """Which variables of a network are taken from others; paths are ("params", "stem", ...)."""

    taken: tuple[tuple[str, ...], ...]
    new: tuple[tuple[str, ...], ...]
    unused: tuple[tuple[str, ...], ...]

    def apply(self, ours: Any, theirs: Any) -> Any:
        """`ours` with the taken ones of `theirs`."""
        flat, other = _flatten(ours), _flatten(theirs)
        taken = {path: jax.numpy.asarray(other[path], flat[path].dtype) for path in self.taken}
        return traverse_util.unflatten_dict({**flat, **taken})

    def describe(self, model_name: str, start: Start, class_names: Sequence[str]) -> str:
        """One line: how much was taken, what is new, and what a head that was taken is about."""
        parts = [f"{model_name} starts with {start.source}"]
        if self.new or self.unused:
            everything = len(self.taken) + len(self.new)
            parts.append(f"{len(self.taken)} of {everything} arrays taken")
        for what, paths in (("new", self.new), ("not used", self.unused)):
            if paths:
                parts.append(f"{what}: {listing(['/'.join(path[1:]) for path in paths])}")
        theirs = start.class_names
        if len(theirs) == len(class_names) > 0 and theirs != tuple(class_names):
            both = f"{listing(theirs, 3)}, and the data's {listing(list(class_names), 3)}"
            parts.append(f"its classes are {both}")
        return "; ".join(parts)


def match_variables(
    model: nn.Module,
    image_shape: Sequence[int],
    ours: Any,
    theirs: Any,
    source: str,
    partial: bool = False,
) -> Match:
    """Finds what a network takes of other variables; both may be shapes.

    All of it but for the head, where that is of another number of classes; or with `partial` what
    has the same name and shape. Raises UserError, naming some, where other variables differ, and
    where nothing is left to take.
    """
    new, old = _flatten(ours), _flatten(theirs)
    taken = tuple(p for p in new if p in old and old[p].shape == new[p].shape)
    match = Match(
        taken, tuple(p for p in new if p not in taken), tuple(p for p in old if p not in new)
    )
    if not any(path[0] == "params" for path in taken):
        raise UserError(f"model.weights: {source} has no parameter of the network's name and shape")
    if partial or not (match.new or match.unused):
        return match
    head = _find_head(model, image_shape)
    headless = getattr(model, "num_classes", None) == 0 or getattr(model, "features_only", False)
    problems = [
        f"{'/'.join(p[1:])} has shape {old[p].shape}, and not {new[p].shape}"
        if p in old
        else f"missing {'/'.join(p[1:])}"
        for p in match.new
        if p not in head
    ]
    problems += [f"unexpected {'/'.join(p[1:])}" for p in match.unused if not headless]
    if problems:
        raise UserError(
            f"model.weights: {source} is not of this network: {'; '.join(problems[:4])}"
            f"{f' and {len(problems) - 4} more' if len(problems) > 4 else ''}; add ,partial=true "
            "to take the parameters of the same name and shape"
        )
    return match


def _find_head(model: Any, image_shape: Sequence[int]) -> set[tuple[str, ...]]:
    """The variables that have another shape where there is a class more."""
    classes = getattr(model, "num_classes", 0)
    if not classes:
        return set()
    shape = tuple(image_shape)
    now, more = (trace_shapes(model.clone(num_classes=n), shape) for n in (classes, classes + 1))
    return {path for path in now if now[path] != more.get(path)}


def _flatten(tree: Any) -> dict[tuple[str, ...], Any]:
    return traverse_util.flatten_dict(dict(tree))  # pyright: ignore[reportReturnType]
