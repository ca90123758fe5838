"""How large values and gradients are in every layer: whether they vanish or explode with depth."""

import functools
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import traverse_util
from jax.typing import ArrayLike

from flaxcnn.analysis.forward import Forward
from flaxcnn.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = jax.Array


class Signals(NamedTuple):
    """Of each layer with a kernel, in order of computation; arrays are float32 [layers].

    Attributes:
      layers: the layers' paths as in the parameters.
      mean, deviation: of all outputs, before the activation.
      backward: the norm of the gradient of an image's loss with respect to the layer's outputs,
        root mean square over images.
      gradient: the norm of the gradient of the mean loss with respect to the kernel.
    """

    layers: list[str]
    mean: np.ndarray
    deviation: np.ndarray
    backward: np.ndarray
    gradient: np.ndarray


def signals(
    model: nn.Module, variables: Any, images: ArrayLike, labels: ArrayLike, *, train: bool = True
) -> Signals:
    """Measures a classifier's layers on normalised images [N, H, W, C] and labels int [N].

    The loss is cross-entropy, of a single output with its sigmoid; auxiliary outputs do not count.
    With `train` as in a step of training: BatchNorm by the batch, dropout from a fixed key; else
    as in inference. What Glorot and Bengio (2010, section 4) and He et al. (2015, section 2.2) look
    at. Raises UserError for a network without kernels or without scores [N, classes].
    """
    images, labels = jnp.asarray(images), jnp.asarray(labels)
    if labels.shape != images.shape[:1]:
        raise UserError(f"labels must be [{images.shape[0]}], one per image, got {labels.shape}")
    measured = _measure(model, train, variables, images, labels)
    values = np.array(list(measured.values()), np.float32)
    return Signals(list(measured), *values.T)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _measure(
    model: nn.Module, train: bool, variables: Any, images: Array, labels: Array
) -> OrderedDict[str, Array]:  # of a dict, jit sorts the keys
    rngs = {"dropout": jax.random.key(0)} if train else None
    parameters: dict[str, Array] = traverse_util.flatten_dict(variables["params"], sep="/")  # pyright: ignore
    kernels = {path.removesuffix("/kernel") for path in parameters if path.endswith("/kernel")}
    layers = Forward(model, variables, images, rngs).layers
    outputs = {name: var.aval for name, var in layers.items() if name.split("#")[0] in kernels}
    if not outputs:
        raise UserError(f"{type(model).__name__} has no layer with a kernel")

    def find_loss(params: Any, added: list[Array]) -> tuple[Array, list[Array]]:
        forward = Forward(model, {**variables, "params": params}, images, rngs)
        wanted = [forward.layers[name] for name in outputs]
        # Their gradients are those with respect to the outputs.
        changes = {
            var: functools.partial(jnp.add, zeros) for var, zeros in zip(wanted, added, strict=True)
        }
        *values, scores = forward.run([*wanted, forward.find_logits()], changes=changes)
        return _cross_entropy(scores, labels), values

    zeros = [jnp.zeros(aval.shape, aval.dtype) for aval in outputs.values()]
    gradients, values = jax.grad(find_loss, (0, 1), has_aux=True)(variables["params"], zeros)
    of_parameters: Any = traverse_util.flatten_dict(gradients[0], sep="/")
    found = OrderedDict()
    for name, value, backward in zip(outputs, values, gradients[1], strict=True):
        value = value.astype(jnp.float32)
        gradient = of_parameters[f"{name.split('#')[0]}/kernel"]
        norms = [_norm(backward) * len(images) ** 0.5, _norm(gradient)]
        found[name] = jnp.stack([value.mean(), value.std(), *norms])
    return found


def _norm(x: Array) -> Array:
    return jnp.linalg.norm(x.astype(jnp.float32).ravel())


def _cross_entropy(scores: Array, labels: Array) -> Array:
    scores = scores.astype(jnp.float32)
    if scores.shape[-1] == 1:
        return optax.sigmoid_binary_cross_entropy(scores[:, 0], labels).mean()
    return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()


# Okabe and Ito's (2008), told apart by colour-blind readers.
_COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
_PANELS = {
    "mean": "Mean of outputs",
    "deviation": "Standard deviation of outputs",
    "backward": "Norm of the gradient by outputs",
    "gradient": "Norm of the gradient by kernels",
}


def draw_signals(measured: Mapping[str, Signals], title: str = "") -> "Figure":
    """Draws what each layer has against its depth, a line for each of the named measurements.

    All but means are drawn on a logarithmic axis, on which a zero has no place: a line without any
    other value is only named.
    """
    from matplotlib.figure import Figure

    figure = Figure((11.0, 7.0), dpi=120, layout="constrained")
    panels = dict(zip(_PANELS, figure.subplots(2, 2).ravel(), strict=True))
    for index, (name, found) in enumerate(measured.items()):
        color = _COLORS[index % len(_COLORS)]
        line = ("-", "--", ":")[index // len(_COLORS) % 3]
        depth = np.arange(1, len(found.layers) + 1)
        for key, axes in panels.items():
            values = getattr(found, key)
            if key != "mean":
                values = np.where(values > 0, values, np.nan)
            zero = "" if np.isfinite(values).any() else " (zero)"
            marker = "o" if len(depth) <= 20 else None
            axes.plot(depth, values, line, color=color, marker=marker, ms=4, label=f"{name}{zero}")
    layers = {tuple(found.layers) for found in measured.values()}
    for key, axes in panels.items():
        axes.set(title=_PANELS[key], xlabel="layer (with a kernel)")
        if key != "mean":
            axes.set_yscale("log")
        if len(layers) == 1 and len(names := next(iter(layers))) <= 12:
            axes.set_xticks(range(1, len(names) + 1), names, rotation=30, ha="right")
            axes.set_xlabel("")
        axes.grid(color="#DDDDDD")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    panels["gradient"].legend(fontsize=8)
    if title:
        figure.suptitle(title)
    return figure
