"""What a name map is made of: rules for modules, and the conventions of each layout for leaves."""

import functools
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

Array = np.ndarray

_compile = functools.cache(re.compile)  # `re` keeps 512, and NASNet has more


class Transform(NamedTuple):
    """A change of layout, and its inverse."""

    to_theirs: Callable[[Array], Array]
    to_ours: Callable[[Array, tuple[int, ...]], Array]  # the second argument is our shape


class Rule(NamedTuple):
    r"""What another library calls a module, or several.

    `ours` is a regular expression that must match the module's whole path, such as
    r"stage(\d)_block(\d+)/conv(\d)". In `theirs`, \1 stands for the first group and {1-1} for the
    first group, a number, less one: r"layer\1.{2-1}.conv\3". `leaves` are the module's
    own names for parameters that differ from the layout's. `kernel` changes the kernel in another
    way than the layout does. `bias_before` is the name of a bias that their convolution has before
    this BatchNorm and ours has not: it is taken off the mean. `constants` are the values of leaves
    that they do not have.
    """

    ours: str
    theirs: str
    leaves: Mapping[str, str] = {}
    kernel: Transform | None = None
    bias_before: str | None = None
    constants: Mapping[str, float] = {}

    def rename(self, path: str) -> str | None:
        """Returns their name of the module at `path`, or None if the rule is not about it."""
        return self._expand(self.theirs, path)

    def rename_bias_before(self, path: str) -> str | None:
        """Returns their name of the bias before the module at `path`, or None."""
        return self._expand(self.bias_before, path) if self.bias_before else None

    def _expand(self, template: str, path: str) -> str | None:
        match = _compile(self.ours).fullmatch(path)
        if match is None:
            return None
        name = match.expand(template)
        return re.sub(r"\{(\d+)([+-]\d+)\}", lambda m: str(int(match[int(m[1])]) + int(m[2])), name)


class Convention(NamedTuple):
    """How a library names and lays out the leaves of a module."""

    separator: str
    leaves: Mapping[str, str]  # our name -> theirs
    norm_leaves: Mapping[str, str]  # of a module with batch statistics
    kernels: Mapping[int, Transform]  # by number of axes
    ignored: str = "$^"  # a pattern of names that hold no weights
    prefixes: tuple[str, ...] = ()  # that wrappers put before all names


def _permute(*axes: int) -> Transform:
    back = tuple(np.argsort(axes))
    return Transform(lambda x: x.transpose(axes), lambda x, _: x.transpose(back))


OIHW = _permute(3, 2, 0, 1)
TRANSPOSED = _permute(1, 0)
OHWI = _permute(3, 0, 1, 2)
DEPTHWISE_OHWI = _permute(2, 0, 1, 3)  # [h, w, 1, C] as TFLite's [1, h, w, C]
DEPTHWISE_LAST = _permute(0, 1, 3, 2)  # [h, w, 1, C] as Keras' [h, w, C, 1]


def flatten_from(height: int, width: int) -> Transform:
    """The kernel of a dense layer on a flattened map: HWC here, CHW in PyTorch and Caffe."""

    def to_theirs(x: Array) -> Array:
        features = x.shape[-1]
        return x.reshape(height, width, -1, features).transpose(3, 2, 0, 1).reshape(features, -1)

    def to_ours(x: Array, shape: tuple[int, ...]) -> Array:
        return x.reshape(len(x), -1, height, width).transpose(2, 3, 1, 0).reshape(shape)

    return Transform(to_theirs, to_ours)


# The kernel of a dense layer as that of a convolution, [O, 1, 1, C].
DENSE_OHWI = Transform(
    lambda x: x.T[:, None, None], lambda x, shape: x.reshape(len(x), -1).T.reshape(shape)
)


def dense_as_conv(height: int = 1, width: int = 1) -> Transform:
    """The kernel of a dense layer on a flattened map, as that of a convolution, [O, C, H, W]."""

    def to_theirs(x: Array) -> Array:
        return x.reshape(height, width, -1, x.shape[-1]).transpose(3, 2, 0, 1)

    def to_ours(x: Array, shape: tuple[int, ...]) -> Array:
        return x.transpose(2, 3, 1, 0).reshape(shape)

    return Transform(to_theirs, to_ours)


_TORCH = Convention(
    separator=".",
    leaves={"kernel": "weight", "bias": "bias"},
    norm_leaves={
        "scale": "weight",
        "bias": "bias",
        "mean": "running_mean",
        "var": "running_var",
    },
    kernels={4: OIHW, 2: TRANSPOSED},
    ignored=r".*\.num_batches_tracked|n_averaged",  # the second of `AveragedModel`
    # DataParallel and AveragedModel, torch.compile, and what a Lightning module calls its network.
    prefixes=("module.", "_orig_mod.", "model.", "net."),
)

CONVENTIONS = {
    "torchvision": _TORCH,
    "timm": _TORCH,
    "keras": Convention(
        separator="/",
        leaves={"kernel": "kernel", "bias": "bias"},
        norm_leaves={
            "scale": "gamma",
            "bias": "beta",
            "mean": "moving_mean",
            "var": "moving_variance",
        },
        kernels={},
    ),
    # Names of a Caffe net's layers, with .weight and .bias; BatchNorm's mean and variance already
    # divided by their scale factor.
    "caffe": Convention(
        separator=".",
        leaves={"kernel": "weight", "bias": "bias"},
        norm_leaves={"scale": "weight", "bias": "bias", "mean": "mean", "var": "var"},
        kernels={4: OIHW, 2: TRANSPOSED},
    ),
    # Darknet's files have no names: convolutions are numbered (`formats/darknet.py`).
    "darknet": Convention(
        separator=".",
        leaves={"kernel": "weights", "bias": "biases"},
        norm_leaves={
            "scale": "scales",
            "bias": "biases",
            "mean": "rolling_mean",
            "var": "rolling_variance",
        },
        kernels={4: OIHW},
    ),
    # TF-slim's names of layers, with .weight and .bias, BatchNorm folded into them.
    "tflite": Convention(
        separator=".",
        leaves={"kernel": "weight", "bias": "bias"},
        norm_leaves={"scale": "scale", "bias": "bias", "mean": "mean", "var": "variance"},
        kernels={4: OHWI, 2: DENSE_OHWI},
    ),
    # Our own names and layout, as "params/stem/kernel".
    "flaxcnn": Convention(separator="/", leaves={}, norm_leaves={}, kernels={}),
}


def folded(epsilon: float) -> Mapping[str, float]:
    """The leaves of a BatchNorm that does nothing but add its bias; to the last bit or two."""
    return {"scale": 1.0, "mean": 0.0, "var": 1.0 - epsilon}
