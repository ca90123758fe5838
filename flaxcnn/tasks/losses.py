"""Losses per example: float32 logits [N, C] and int labels [N] -> float32 [N].

Nothing here averages over the batch: the training step weighs and averages, so that a padded
example counts nothing. With one output (C == 1) labels are 0 and 1 and the logit is that of 1.
"""

import functools
import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flaxcnn.errors import UserError

Loss = Callable[[jax.Array, jax.Array], jax.Array]


def cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Softmax cross-entropy in nats.

    `label_smoothing` in [0, 1) moves that share of each target evenly to all classes, the true
    one included (Szegedy 2016, section 7).

    Raises:
        UserError: one output, whose softmax is always 1.
    """
    num_outputs = logits.shape[-1]
    if num_outputs == 1:
        raise UserError(
            "loss.name: cross_entropy needs one output per class and the network has one output; "
            "use binary_cross_entropy, focal or mse"
        )
    targets = jax.nn.one_hot(labels, num_outputs, dtype=logits.dtype)
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, label_smoothing))


def binary_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Sigmoid cross-entropy in nats; with C > 1 outputs one class against all others.

    The mean over the C outputs, as `torch.nn.BCEWithLogitsLoss`, timm and Keras have it; "ResNet
    strikes back" (Wightman 2021) trains with this form.
    """
    return optax.sigmoid_binary_cross_entropy(logits, _sigmoid_targets(logits, labels)).mean(-1)


def focal(
    logits: jax.Array, labels: jax.Array, focal_gamma: float = 2.0, label_smoothing: float = 0.0
) -> jax.Array:
    """Cross-entropy weighted by (1 - p)^focal_gamma, p the target's probability (Lin 2017, eq. 4).

    Softmax over C > 1 outputs, sigmoid for one. Without Lin's class weight alpha, which is what
    `compute_class_weights` gives. A smoothed target sums the classes' focal terms, each weighted
    by its share of the target; one output has the classes 0 and 1.
    """
    if logits.shape[-1] == 1:
        log_p = jax.nn.log_sigmoid(jnp.concatenate([-logits, logits], axis=-1))
    else:
        log_p = jax.nn.log_softmax(logits)
    targets = jax.nn.one_hot(labels, log_p.shape[-1], dtype=logits.dtype)
    # Above zero, where the derivative of a power below one is infinite.
    miss = jnp.maximum(-jnp.expm1(log_p), jnp.finfo(logits.dtype).tiny)
    return -(optax.smooth_labels(targets, label_smoothing) * miss**focal_gamma * log_p).sum(-1)


def mse(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean over the outputs of (probability - one-hot target)^2, as Keras after a softmax layer.

    Probabilities are the softmax of C > 1 logits, the sigmoid of one.
    """
    activation = jax.nn.sigmoid if logits.shape[-1] == 1 else jax.nn.softmax
    return jnp.square(activation(logits) - _sigmoid_targets(logits, labels)).mean(-1)


def _sigmoid_targets(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """What each output should say, [N, C]: the label itself for one output, else one-hot."""
    if logits.shape[-1] == 1:
        return labels[:, None].astype(logits.dtype)
    return jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)


def compute_class_weights(kind: str, counts: np.ndarray, beta: float) -> np.ndarray:
    """What the loss of each class's examples counts in training, float64 [C], from `counts` [C].

    "balanced": inverse to the count, 1 on average over the examples, as scikit-learn's
    `compute_class_weight`. "effective": inverse to the effective number of examples
    (1 - beta^n) / (1 - beta), with beta in [0, 1), 1 on average over the classes (Cui et al. 2019,
    section 4). A class without examples has weight 0 and no part in the average.
    """
    present = counts[counts > 0]
    if kind == "balanced":
        inverse = present.sum() / (len(present) * present)
    else:
        inverse = (1 - beta) / (1 - np.float64(beta) ** present)
        inverse /= inverse.mean()
    weights = np.zeros(len(counts))
    weights[counts > 0] = inverse
    return weights


# Their further arguments are fields of the config's `loss`.
LOSSES: dict[str, Callable[..., jax.Array]] = {
    "cross_entropy": cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
    "focal": focal,
    "mse": mse,
}


def loss_settings(name: str) -> tuple[str, ...]:
    """The fields of the config's `loss` that the loss `name` uses."""
    return tuple(inspect.signature(LOSSES[name]).parameters)[2:]


def make_loss(*, name: str, label_smoothing: float = 0.0, focal_gamma: float = 2.0) -> Loss:
    """The loss `name`: (logits [N, C], labels [N]) -> [N].

    Raises:
        UserError: unknown name, a setting out of range, smoothing of a loss that has none.
    """
    if not 0.0 <= label_smoothing < 1.0:
        raise UserError(f"loss.label_smoothing={label_smoothing}: must be in [0, 1)")
    if focal_gamma < 0.0:
        raise UserError(f"loss.focal_gamma={focal_gamma}: must not be negative")
    if name not in LOSSES:
        raise UserError(f"loss.name={name!r}: must be one of {', '.join(LOSSES)}")
    settings = {"label_smoothing": label_smoothing, "focal_gamma": focal_gamma}
    used = loss_settings(name)
    if label_smoothing and "label_smoothing" not in used:
        raise UserError(f"loss.label_smoothing={label_smoothing}: loss.name={name!r} has none")
    return functools.partial(LOSSES[name], **{field: settings[field] for field in used})
