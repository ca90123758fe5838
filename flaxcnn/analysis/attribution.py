"""Which pixels a score depends on: seven methods with one signature.

    method(model, variables, images, classes=None, **options) -> attributions

`images` are what the network takes, float [N, H, W, C]; `classes`, an integer or integers [N], are
those whose scores (before any softmax) are explained, by default the one that the network says.
Attributions are float32 [N, H, W, C], or [N, H, W, 1] where a method does not tell channels apart;
positive is for the class. The network is a classifier in inference, any Linen module that returns
scores [N, classes]; each method is compiled once per network, shape and option. Values agree with
captum's (tests/reference/make_captum.py). Which of them pass the sanity checks of Adebayo et al.
2018 is in docs/looking_inside.md.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jax.core import Tracer
from jax.typing import ArrayLike

from flaxcnn.analysis.forward import Forward, Rule
from flaxcnn.errors import UserError

Array = jax.Array


def saliency(model: nn.Module, variables: Any, images: ArrayLike, classes: Any = None) -> Array:
    """The gradient of the score (Simonyan et al. 2013, arXiv:1312.6034)."""
    images, classes = _read(model, variables, images, classes)
    return _gradient(model, "gradient", variables, images, classes)


def guided_backpropagation(
    model: nn.Module, variables: Any, images: ArrayLike, classes: Any = None
) -> Array:
    """The gradient, cut to what is positive behind every ReLU (Springenberg et al. 2014).

    Draws what the network sees rather than what it decides by: it hardly depends on the later
    layers' parameters (Adebayo et al. 2018). arXiv:1412.6806.
    """
    images, classes = _read(model, variables, images, classes)
    return _gradient(model, "guided", variables, images, classes)


def deconvolution(
    model: nn.Module, variables: Any, images: ArrayLike, classes: Any = None
) -> Array:
    """The score sent back through a deconvnet (Zeiler and Fergus 2014, arXiv:1311.2901).

    Max pooling is undone by its switches, and ReLUs cut what is negative on the way back.
    """
    images, classes = _read(model, variables, images, classes)
    return _gradient(model, "deconvolution", variables, images, classes)


def smooth_grad(
    model: nn.Module,
    variables: Any,
    images: ArrayLike,
    classes: Any = None,
    *,
    samples: int = 32,
    noise: float = 0.15,
    seed: int = 0,
) -> Array:
    """The mean gradient over noisy copies (Smilkov et al. 2017, arXiv:1706.03825).

    The noise is normal, its deviation `noise` times an image's range (largest minus least value).
    """
    _check(samples >= 1, f"samples is {samples}, and must be at least 1")
    images, classes = _read(model, variables, images, classes)
    key = jax.random.key(seed)
    return _smooth_grad(model, samples, variables, images, classes, noise, key)


def integrated_gradients(
    model: nn.Module,
    variables: Any,
    images: ArrayLike,
    classes: Any = None,
    *,
    baseline: Any = 0.0,
    steps: int = 32,
) -> Array:
    """The gradient along the line from a baseline, times the way (Sundararajan et al. 2017).

    Attributions add up to the difference of the scores, within the error of `steps` Gauss-Legendre
    points. `baseline`, a number or images, is what says nothing: 0, the mean colour of images that
    are normalised by mean and deviation. arXiv:1703.01365.
    """
    _check(steps >= 1, f"steps is {steps}, and must be at least 1")
    images, classes = _read(model, variables, images, classes)
    baseline = jnp.asarray(baseline, images.dtype)
    return _integrated_gradients(model, steps, variables, images, classes, baseline)


def grad_cam(
    model: nn.Module,
    variables: Any,
    images: ArrayLike,
    classes: Any = None,
    *,
    layer: str | None = None,
) -> Array:
    """A layer's maps weighted by their mean gradients, where positive (Selvaraju et al. 2017).

    `layer` is named as in `activations`; by default the maps that the classifier pools or flattens.
    Maps [N, h, w, C] to [N, H, W, 1] at the images' size, by bilinear interpolation.
    arXiv:1610.02391. Raises UserError for a layer whose output is no maps.
    """
    images, classes = _read(model, variables, images, classes)
    return _grad_cam(model, layer, variables, images, classes)


def occlusion(
    model: nn.Module,
    variables: Any,
    images: ArrayLike,
    classes: Any = None,
    *,
    window: int | None = None,
    stride: int | None = None,
    fill: float = 0.0,
) -> Array:
    """By how much the score falls when a square is covered (Zeiler and Fergus 2014), [N, H, W, 1].

    A pixel has the mean over the squares that cover it. `window` is their side, by default a
    seventh of the image's shorter one, `stride` the step from one to the next, by default half a
    window; `fill` is the value they are covered with, 0 the mean colour of normalised images.
    """
    images, classes = _read(model, variables, images, classes)
    window = window or max(1, min(images.shape[1:3]) // 7)
    stride = stride or max(1, window // 2)
    _check(
        1 <= stride <= window <= min(images.shape[1:3]),
        f"occlusion needs 1 <= stride <= window <= the image's side; got stride {stride}, window "
        f"{window} and images of {images.shape[1]}x{images.shape[2]}",
    )
    return _occlusion(model, window, stride, variables, images, classes, fill)


Method = Callable[..., Array]
METHODS: dict[str, Method] = {
    "saliency": saliency,
    "smooth_grad": smooth_grad,
    "integrated_gradients": integrated_gradients,
    "guided_backpropagation": guided_backpropagation,
    "deconvolution": deconvolution,
    "grad_cam": grad_cam,
    "occlusion": occlusion,
}


def heatmap(attributions: ArrayLike, absolute: bool = True) -> np.ndarray:
    """One number per pixel: attributions [N, H, W, C] to float32 [N, H, W] of at most 1.

    Channels are added, with `absolute` without their signs; then each image is divided by the 99th
    percentile and cut to -1..1, so that a few pixels do not darken all others.
    """
    values = np.asarray(attributions, np.float32)
    values = (np.abs(values) if absolute else values).sum(-1)
    top = np.percentile(np.abs(values), 99, axis=(1, 2), keepdims=True)
    largest = np.abs(values).max(axis=(1, 2), keepdims=True)
    top = np.where(top > 0, top, np.where(largest > 0, largest, 1))  # of a few pixels the largest
    return np.clip(values / top, -1, 1).astype(np.float32)


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


def _read(
    model: nn.Module, variables: Any, images: Any, classes: Any
) -> tuple[Array, Array | None]:
    images = jnp.asarray(images)
    _check(images.ndim == 4, f"images must be [N, H, W, C], got shape {images.shape}")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise UserError(f"images are {images.dtype}: give them as the network takes them, floats")
    if classes is None:
        return images, None
    given, classes = classes, jnp.asarray(classes)
    _check(
        jnp.issubdtype(classes.dtype, jnp.integer) and classes.shape in ((), images.shape[:1]),
        f"classes must be an integer or {images.shape[0]} of them, one for each image; got "
        f"{classes.dtype} of shape {classes.shape}",
    )
    if not isinstance(given, Tracer):
        count = Forward(model, variables, images[:1]).find_logits().aval.shape[1]
        least, most = int(np.min(given)), int(np.max(given))
        _check(
            0 <= least <= most < count,
            f"class {most if most >= count else least}: there are {count}",
        )
    return images, jnp.broadcast_to(classes, images.shape[:1])


def _score(
    model: nn.Module,
    variables: Any,
    images: Array,
    classes: Array,
    rule: Rule = "gradient",
) -> Array:
    """Float32 [N]: each image's score of its class."""
    forward = Forward(model, variables, images)
    (logits,) = forward.run([forward.find_logits()], rule)
    return _pick(logits, classes)


def _pick(logits: Array, classes: Array) -> Array:
    columns = classes[:, None]
    return jnp.take_along_axis(logits, columns, axis=1, mode="fill")[:, 0].astype(jnp.float32)


def _or_predicted(model: nn.Module, variables: Any, images: Array, classes: Array | None) -> Array:
    if classes is not None:
        return classes
    forward = Forward(model, variables, images)
    return forward.run([forward.find_logits()])[0].argmax(-1)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _gradient(
    model: nn.Module, rule: Rule, variables: Any, images: Array, classes: Array | None
) -> Array:
    classes = _or_predicted(model, variables, images, classes)
    gradient = jax.grad(lambda x: _score(model, variables, x, classes, rule).sum())(images)
    return gradient.astype(jnp.float32)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _smooth_grad(
    model: nn.Module,
    samples: int,
    variables: Any,
    images: Array,
    classes: Array | None,
    noise: Array,
    key: Array,
) -> Array:
    classes = _or_predicted(model, variables, images, classes)
    axes = (1, 2, 3)
    deviation = noise * (images.max(axes, keepdims=True) - images.min(axes, keepdims=True))

    def add(total: Array, key: Array) -> tuple[Array, None]:
        noisy = images + deviation * jax.random.normal(key, images.shape, images.dtype)
        return total + _gradient(model, "gradient", variables, noisy, classes), None

    zeros = jnp.zeros(images.shape, jnp.float32)
    return lax.scan(add, zeros, jax.random.split(key, samples))[0] / samples


@functools.partial(jax.jit, static_argnums=(0, 1))
def _integrated_gradients(
    model: nn.Module,
    steps: int,
    variables: Any,
    images: Array,
    classes: Array | None,
    baseline: Array,
) -> Array:
    classes = _or_predicted(model, variables, images, classes)
    way = images - jnp.broadcast_to(baseline, images.shape)
    points, weights = np.polynomial.legendre.leggauss(steps)  # on -1..1, weights add up to 2

    def add(total: Array, point: tuple[Array, Array]) -> tuple[Array, None]:
        place, weight = point
        at = images - (1 - place) * way
        return total + weight * _gradient(model, "gradient", variables, at, classes), None

    zeros = jnp.zeros(images.shape, jnp.float32)
    line = (jnp.asarray((1 + points) / 2, images.dtype), jnp.asarray(weights / 2, jnp.float32))
    return lax.scan(add, zeros, line)[0] * way


@functools.partial(jax.jit, static_argnums=(0, 1))
def _grad_cam(
    model: nn.Module, layer: str | None, variables: Any, images: Array, classes: Array | None
) -> Array:
    forward = Forward(model, variables, images)
    var = forward.last_maps if layer is None else forward.find(layer)
    if var is None or len(var.aval.shape) != 4:
        what = "it has no maps" if var is None else f"{layer} puts out {var.aval.shape[1:]}"
        raise UserError(f"Grad-CAM needs a layer with maps [N, h, w, C] of {forward.name}: {what}")
    logits = forward.find_logits()

    def score(change: Array) -> tuple[Array, Array]:
        values, maps = forward.run([logits, var], changes={var: lambda x: x + change})
        chosen = values.argmax(-1) if classes is None else classes
        return _pick(values, chosen).sum(), maps

    zeros = jnp.zeros(var.aval.shape, var.aval.dtype)
    gradient, maps = jax.grad(score, has_aux=True)(zeros)
    weights = gradient.astype(jnp.float32).mean((1, 2), keepdims=True)
    cam = jnp.maximum((weights * maps).sum(-1, keepdims=True), 0)
    return jax.image.resize(cam, (*images.shape[:3], 1), "bilinear", antialias=False)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _occlusion(
    model: nn.Module,
    window: int,
    stride: int,
    variables: Any,
    images: Array,
    classes: Array | None,
    fill: Array,
) -> Array:
    classes = _or_predicted(model, variables, images, classes)
    height, width = images.shape[1:3]
    rows, columns = (_windows(size, window, stride) for size in (height, width))
    score = functools.partial(_score, model, variables, classes=classes)
    whole = score(images)

    def fall(place: Array) -> Array:
        row, column = jnp.asarray(rows)[place[0]], jnp.asarray(columns)[place[1]]
        covered = (row[:, None] * column[None, :])[None, :, :, None] > 0
        return whole - score(jnp.where(covered, jnp.asarray(fill, images.dtype), images))

    places = np.stack(np.meshgrid(range(len(rows)), range(len(columns)), indexing="ij"), -1)
    falls = lax.map(fall, jnp.asarray(places.reshape(-1, 2)), batch_size=_TOGETHER)
    falls = falls.reshape(len(rows), len(columns), -1)
    total = jnp.einsum("abn,ah,bw->nhw", falls, rows, columns)
    count = rows.sum(0)[:, None] * columns.sum(0)[None, :]
    return (total / count[None])[..., None]


_TOGETHER = 8  # covered copies that are computed as one batch


def _windows(size: int, window: int, stride: int) -> np.ndarray:
    """Float32 [windows, size]: 1 where a window is. The last one may be cut by the edge."""
    starts = stride * np.arange(-(-(size - window) // stride) + 1)[:, None]
    place = np.arange(size)[None, :]
    return ((place >= starts) & (place < starts + window)).astype(np.float32)
