"""Networks of Darknet: its files have no names, so layers are numbered as they are computed."""

import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxcnn.layers import BatchNorm, Conv
from flaxcnn.weights.rules import Rule

_SIDE = 64  # of images: the order is the same for all


def darknet(network: nn.Module) -> list[Rule]:
    """The number of each convolution, which its BatchNorm has too (`formats/darknet.py`)."""
    rules: dict[str, Rule] = {}
    numbered = 0

    def note(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        nonlocal numbered
        module = context.module
        if context.method_name == "__call__" and isinstance(module, Conv | BatchNorm):
            numbered += isinstance(module, Conv)
            path = "/".join(module.path)
            rules[path] = Rule(re.escape(path), str(numbered - 1))
        return call(*args, **kwargs)

    def initialize(images: Any) -> Any:
        with nn.intercept_methods(note):
            return network.init(jax.random.key(0), images, train=False)

    jax.eval_shape(initialize, jax.ShapeDtypeStruct((1, _SIDE, _SIDE, 3), jnp.float32))
    return list(rules.values())
