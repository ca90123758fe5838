"""Features of a frozen base: computed once for each image, kept on disk, trained on instead of it.

With `data.cache_features` the network is cut in front of the first of its modules that training
changes or that draws noise: what goes into that module is the same in every epoch. A run on
features applies the whole network, with the features instead of that module's input, so that
nothing is left for the images to do and XLA drops all that came before.

A file holds the features of one split. Its name is the SHA-256 of all that they depend on: pixels,
normalisation, frozen variables, network, place of the cut, precision, backend and versions.
"""

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import InvalidRngError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from flaxcnn import __version__
from flaxcnn.data.splits import ArraySplit, Split
from flaxcnn.errors import UserError
from flaxcnn.training.freeze import Freeze, list_paths
from flaxcnn.training.state import hash_tree
from flaxcnn.weights.hub import user_cache

_BATCH = 32  # images at a time


class Features:
    """The features of any split, and the network as a function of them.

    Of `variables` only those of modules before the cut are used, which `freeze` holds. `preprocess`
    makes the images of a split, uint8 [N, H, W, C], into what the network takes, and `described`
    is what features depend on beside all these. Raises UserError if the network cannot be cut.
    """

    def __init__(
        self,
        model: nn.Module,
        variables: Mapping[str, Any],
        freeze: Freeze,
        preprocess: Any,
        image_shape: Sequence[int],
        described: Mapping[str, Any],
    ):
        # The backward pass of a head has little to compute again.
        self._model = model.clone(remat=False) if hasattr(model, "remat") else model
        self._shape = tuple(image_shape)
        self._variables = jax.tree.map(np.array, variables)  # a step donates those it is given
        self._preprocess = preprocess
        self.cut, before = find_cut(self._model, variables, freeze, self._shape)
        base = {kind: {k: tree[k] for k in before if k in tree} for kind, tree in variables.items()}
        self._described = {
            **described,
            "cut": self.cut,
            "base": hash_tree(base),
            "backend": jax.default_backend(),
            "versions": {"flaxcnn": __version__, "jaxlib": metadata.version("jaxlib")},
        }
        self._splits: dict[int, tuple[Split, ArraySplit]] = {}

    def of(self, split: Split, name: str) -> ArraySplit:
        """The split with float32 features [N, ...] instead of images; `name` is for messages."""
        if id(split) not in self._splits:
            if not isinstance(split, ArraySplit):
                raise UserError(
                    f"data.cache_features: the {name} images are not in memory: raise "
                    "data.resident_limit, or set data.feeder to resident"
                )
            self._splits[id(split)] = split, ArraySplit(self._find(split, name), split.targets)
        return self._splits[id(split)][1]

    def apply(self, variables: Any, features: jax.Array, *inputs: Any, **kwargs: Any) -> Any:
        """What `model.apply` returns for the images that `features` [N, ...] are of."""
        taken = False

        def call(next_call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            nonlocal taken
            if taken or not _is_call(context, self.cut):
                return next_call(*args, **kwargs)
            taken = True
            return next_call(features.astype(args[0].dtype), *args[1:], **kwargs)

        # If they reached the result, it would not be finite.
        images = jnp.full((len(features), *self._shape), jnp.nan)
        with nn.intercept_methods(call):
            return self._model.apply(variables, images, *inputs, **kwargs)

    def _find(self, split: ArraySplit, name: str) -> np.ndarray:
        """From the file, or computed and written there."""
        pixels = np.ascontiguousarray(split.images)
        described = {
            **self._described,
            "pixels": [*pixels.shape, hashlib.sha256(pixels.data).hexdigest()],
        }
        key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
        path, count = user_cache() / "flaxcnn" / "features" / f"{key}.safetensors", len(split)
        if path.exists():
            try:
                features = read(path, key, count)
                print(f"features of {count} {name} images: from {path}", flush=True)
                return features
            except UserError as error:
                print(f"{error}: the features are made again", flush=True)
        started = time.perf_counter()
        features = self._compute(pixels)
        line = f"features of {count} {name} images: {time.perf_counter() - started:.1f} s"
        try:
            write(path, key, features)
            print(f"{line}, kept in {path}", flush=True)
        except OSError as error:
            print(f"{line}; they are not kept: {error}", flush=True)
        return features

    def _compute(self, images: np.ndarray) -> np.ndarray:
        variables = jax.device_put(self._variables)
        extract, parts = jax.jit(self._extract), []
        for start in range(0, len(images), _BATCH):
            part = images[start : start + _BATCH]
            padding = np.zeros((_BATCH - len(part), *self._shape), np.uint8)
            outputs, features = extract(variables, np.concatenate([part, padding]))
            if not start:
                self._check(variables, features, outputs)
            parts.append(np.asarray(features)[: len(part)])
        return np.concatenate(parts)

    def _extract(self, variables: Any, images: jax.Array) -> Any:
        """What the network returns, and its features."""
        found: list[Any] = []

        def call(next_call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            if not found and _is_call(context, self.cut):
                found.append(args[0])
            return next_call(*args, **kwargs)

        with nn.intercept_methods(call):
            outputs = self._model.apply(variables, self._preprocess(images), train=False)
        return outputs, found[0].astype(jnp.float32)

    def _check(self, variables: Any, features: jax.Array, outputs: Any) -> None:
        """Raises UserError unless features are all that the rest of the network needs."""
        again = jax.jit(lambda *x: self.apply(*x, train=False))(variables, features)
        pairs = zip(jax.tree.leaves(again), jax.tree.leaves(outputs), strict=True)
        if not all(np.allclose(x, y, rtol=1e-3, atol=1e-4) for x, y in pairs):
            raise UserError(
                f"data.cache_features: {self.cut} is the first that is trained, and what it is "
                "given is not all that the rest of the network needs: freeze up to one place"
            )


def find_cut(
    model: nn.Module, variables: Mapping[str, Any], freeze: Freeze, image_shape: Sequence[int]
) -> tuple[str, tuple[str, ...]]:
    """The first of the network's own modules that is trained or draws noise, and those before it.

    Computes nothing. Raises UserError where there is none, or nothing with parameters before it.
    """
    trained = list_paths(freeze.trained(variables["params"]))
    trained += list_paths(freeze.moving(variables.get("batch_stats", {})))
    names = {path.partition("/")[0] for path in trained if "/" in path}
    alone = [path for path in trained if "/" not in path]  # the network's own
    called: list[str] = []
    cut = ""

    def call(next_call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        nonlocal cut
        path = context.module.path
        if cut or len(path) != 1 or context.method_name != "__call__":
            return next_call(*args, **kwargs)
        if path[0] in names:
            cut = path[0]
        else:
            called.append(path[0])
        try:
            return next_call(*args, **kwargs)
        except InvalidRngError:  # it draws noise, and has been given no key
            cut = cut or path[0]
            raise

    def forward(variables: Any, images: Any) -> Any:
        return model.apply(variables, images, train=True, mutable=["batch_stats"])

    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    with nn.intercept_methods(call), freeze.hold_statistics():
        with contextlib.suppress(InvalidRngError):
            jax.eval_shape(forward, variables, images)
    before = tuple(dict.fromkeys(name for name in called if name != cut))
    if alone or not cut or not set(before) & set(variables["params"]):
        raise UserError(
            "data.cache_features: nothing that is frozen comes before all that is trained or "
            f"noisy{f' ({cut})' if cut else ''}: see optimizer.freeze"
        )
    return cut, before


def read(path: Path, key: str, count: int) -> np.ndarray:
    """The features of a file, [count, ...]. Raises UserError unless they are those of `key`."""
    try:
        with safe_open(path, "np") as file:
            known, features = file.metadata() or {}, file.get_tensor("features")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is damaged ({error})") from error
    if known.get("key") != key or len(features) != count:
        raise UserError(f"{path} is of something else")
    if known.get("sha256") != hashlib.sha256(features.data).hexdigest():
        raise UserError(f"{path} is damaged")
    return features


def write(path: Path, key: str, features: np.ndarray) -> None:
    """Writes a file for `read`, in one move."""
    digest = hashlib.sha256(features.data).hexdigest()
    content = save({"features": features}, metadata={"key": key, "sha256": digest})
    path.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(path) as temporary:
        temporary.write_bytes(content)
        temporary.replace(path)


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A file beside `path`, which is gone at the end."""
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _is_call(context: Any, name: str) -> bool:
    return context.module.path == (name,) and context.method_name == "__call__"
