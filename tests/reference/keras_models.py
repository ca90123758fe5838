"""Networks of Keras, run on its JAX backend."""

import importlib
import os

os.environ["KERAS_BACKEND"] = "jax"

import jax
import jax.numpy as jnp
import keras
import numpy as np
from draw import draw_images, draw_weight
from networks import CLASSES, Reference


def run(reference: Reference) -> dict[str, np.ndarray]:
    """Golden outputs of a network of keras.applications."""
    module, _, name = reference.source.rpartition(".")
    keras.backend.clear_session()
    model = getattr(importlib.import_module(module), name)(
        weights=None,
        classes=CLASSES,
        classifier_activation=None,
        input_shape=(reference.side, reference.side, 3),
        **reference.arguments,
    )
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0  # the moving statistics become the batch's
    for variable in model.variables:
        if "seed_generator" in variable.path:
            continue
        shape = tuple(variable.shape)
        fan_in = int(np.prod(shape[:-1]))
        if len(shape) == 4 and ("depthwise" in variable.path or "_dw" in variable.path):
            fan_in = shape[0] * shape[1]
        variable.assign(draw_weight(variable.path, shape, fan_in, *reference.scale))
    images = jnp.asarray(draw_images(reference.batch, reference.side, reference.side, 3))
    trainable = [v.value for v in model.trainable_variables]
    fixed = [v.value for v in model.non_trainable_variables]

    # Not under jit: Keras' graphs of separable convolutions take minutes to compile.
    def evaluate(trainable, fixed):
        return model.stateless_call(trainable, fixed, images, training=False)[0]

    results = {"logits": np.asarray(evaluate(trainable, fixed))}
    if not reference.training:
        return results

    def step(trainable, fixed):
        def loss_fn(trainable):
            logits, new = model.stateless_call(trainable, fixed, images, training=True)
            picked = jax.nn.log_softmax(logits)[
                jnp.arange(reference.batch), jnp.arange(reference.batch)
            ]
            return -picked.mean(), new

        return jax.value_and_grad(loss_fn, has_aux=True)(trainable)

    (loss, new), gradients = step(trainable, fixed)
    paths = [v.path for v in model.non_trainable_variables]
    statistics = dict(zip(paths, new, strict=True))
    return results | {
        "loss": np.asarray(loss),
        "gradients": _norms(
            {v.path: g for v, g in zip(model.trainable_variables, gradients, strict=True)}
        ),
        "means": _norms({p: v for p, v in statistics.items() if p.endswith("moving_mean")}),
        "variances": _norms({p: v for p, v in statistics.items() if p.endswith("moving_variance")}),
    }


def _norms(arrays: dict) -> np.ndarray:
    return np.array([np.linalg.norm(np.ravel(arrays[p])) for p in sorted(arrays)], np.float32)
