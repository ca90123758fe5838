"""The pure training step and evaluation step, and K of them in one call. No device is named here.

What a call is given: `arrays`, what stays on the device for the whole run (the resident feeder's
split, or nothing), and `items`, with leading axes [K, batch]: indices into `arrays`, or the images
and labels themselves. `take(arrays, item)` makes a batch of one item.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from flaxcnn.data.augment import Augment, View, average_over, for_labels
from flaxcnn.errors import UserError
from flaxcnn.models._network import Outputs
from flaxcnn.tasks.classification import Classification
from flaxcnn.training.optim import Lookahead
from flaxcnn.training.state import TrainState

Metrics = dict[str, jax.Array]


def make_preprocess(mean: Any, std: Any) -> Callable[[jax.Array], jax.Array]:
    """Images [N, H, W, C] -> float32, standardised by the channel's constants.

    uint8 is scaled to 0..1 first; floats are there already: an augmentation has made them.
    """
    mean, std = (jnp.asarray(x, jnp.float32)[None, None, None] for x in (mean, std))

    def preprocess(images: jax.Array) -> jax.Array:
        if images.dtype == jnp.uint8:
            images = images.astype(jnp.float32) / 255
        return (images - mean) / std

    return preprocess


def make_train_step(
    model: nn.Module,
    task: Classification,
    tx: optax.GradientTransformation,
    preprocess: Callable[[jax.Array], jax.Array],
    *,
    augment: Augment | None = None,
    accumulate: int = 1,
    ema_decay: float = 0.0,
    lookahead: Lookahead | None = None,
    auxiliary_weight: float = 0.3,
    axis_name: str | None = None,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """One optimizer update: (state, (images, labels), lr_scale) -> (state, metrics).

    `metrics` are means over the batch; what is minimised also has the task's class weights. With
    `accumulate` A the gradient is the mean over A micro-batches (BatchNorm then sees batch / A
    examples at a time). The losses of auxiliary classifiers count `auxiliary_weight` times;
    `metrics` are the main one's. `axis_name` is pmap's axis: gradients, statistics and metrics are
    averaged over it. `lr_scale` multiplies the update; `lookahead` then moves weights and batch
    statistics. `augment` changes the images before all this, and may mix them: then loss and
    metrics are those for both labels, by their shares.
    """

    def loss_fn(params, batch_stats, images, labels, key):
        outputs, updates = model.apply(
            {"params": params, "batch_stats": batch_stats},
            preprocess(images),
            train=True,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
        logits, auxiliary = outputs if isinstance(outputs, Outputs) else (outputs, ())

        def measure(labels):
            metrics = task.metrics(logits, labels)
            return metrics, task.weigh(metrics["loss"], labels)

        metrics, losses = for_labels(measure, labels)
        total = losses.mean()
        for other in auxiliary:
            losses = for_labels(lambda x, other=other: task.weigh(task.loss(other, x), x), labels)
            total += auxiliary_weight * losses.mean()
        return total, (updates.get("batch_stats", {}), jax.tree.map(jnp.mean, metrics))

    grad_fn = jax.grad(loss_fn, has_aux=True)

    def gradients(state: TrainState, images, labels):
        noise_key = jax.random.fold_in(state.key, state.step)
        if accumulate == 1:
            grads, (batch_stats, metrics) = grad_fn(
                state.params, state.batch_stats, images, labels, noise_key
            )
            return grads, batch_stats, metrics

        def micro_step(batch_stats, micro):
            index, images, labels = micro
            key = jax.random.fold_in(noise_key, index)
            grads, (batch_stats, metrics) = grad_fn(state.params, batch_stats, images, labels, key)
            return batch_stats, (grads, metrics)

        # Micro-batch i holds examples i, i + A, ...: a batch split over devices stays split.
        images, labels = jax.tree.map(
            lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), (images, labels)
        )
        batch_stats, stacked = jax.lax.scan(
            micro_step, state.batch_stats, (jnp.arange(accumulate), images, labels)
        )
        grads, metrics = jax.tree.map(lambda x: jnp.mean(x, axis=0), stacked)
        return grads, batch_stats, metrics

    def train_step(state: TrainState, batch, lr_scale):
        if augment is not None:
            batch = augment(state.key, state.step, *batch)
        grads, batch_stats, metrics = gradients(state, *batch)
        if axis_name is not None:
            grads, batch_stats, metrics = jax.lax.pmean((grads, batch_stats, metrics), axis_name)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        updates = jax.tree.map(lambda u: u * lr_scale, updates)
        params = optax.apply_updates(state.params, updates)
        slow = state.slow
        if lookahead is not None:
            (params, batch_stats), slow = lookahead(state.step + 1, (params, batch_stats), slow)
        ema = state.ema
        if ema is not None:
            # The average of few steps must not remember the initial values (as in TensorFlow).
            decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
            ema = optax.incremental_update(params, ema, 1 - decay)
        state = state.replace(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema=ema,
            slow=slow,
        )
        return state, metrics

    return train_step


def make_train_call(train_step: Callable, take: Callable) -> Callable:
    """K steps: (state, arrays, items [K, batch], lr_scale) -> (state, metrics averaged over K).

    The metrics are summed in the carry: stacked outputs of a scan are quadratic in K on one jaxlib.
    """

    def train_call(state: TrainState, arrays, items, lr_scale):
        def body(carry, item):
            state, sums = carry
            state, metrics = train_step(state, take(arrays, item), lr_scale)
            return (state, jax.tree.map(jnp.add, sums, metrics)), None

        first = jax.tree.map(lambda x: x[0], items)
        shapes = jax.eval_shape(train_step, state, take(arrays, first), lr_scale)[1]
        sums = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        (state, sums), _ = jax.lax.scan(body, (state, sums), items)
        steps = jax.tree.leaves(items)[0].shape[0]
        return state, jax.tree.map(lambda x: x / steps, sums)

    return train_call


def make_forward(
    model: nn.Module, preprocess: Callable[[jax.Array], jax.Array], views: Sequence[View] = ()
) -> Callable[[Any, jax.Array], jax.Array]:
    """(variables, images uint8 [N, H, W, C]) -> logits float32 [N, outputs], for evaluation.

    With `views` their average, see `flaxcnn.data.augment.views`.
    """

    def forward(variables, images):
        def apply(images) -> Any:
            return model.apply(variables, images, train=False)

        return average_over(views, apply)(preprocess(images))

    return forward


def check_takes(model: nn.Module, variables: Any, image_shape: Sequence[int], field: str) -> None:
    """Raises UserError naming `field` if a network with these variables cannot take `image_shape`.

    It traces, and computes nothing; `variables` may be shapes. (H, W, C) is not what it takes where
    a parameter would need another shape: a dense one after flattening, or the first kernel.
    """
    shape = "x".join(map(str, image_shape))
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    try:
        needed = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    except (TypeError, UserError, ValueError, ZeroDivisionError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{field}: the network cannot take {shape} images: {reason}") from error
    leaves = jax.tree.leaves(variables["params"])
    paths = jax.tree_util.tree_leaves_with_path(needed["params"])
    for (path, new), old in zip(paths, leaves, strict=True):
        if new.shape != old.shape:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise UserError(
                f"{field}: the network cannot take {shape} images: {name} would have to be "
                f"{'x'.join(map(str, new.shape))}, and is {'x'.join(map(str, old.shape))}"
            )


def make_eval_call(
    model: nn.Module,
    task: Classification,
    preprocess: Callable[[jax.Array], jax.Array],
    take: Callable,
    views: Sequence[View] = (),
) -> Callable:
    """K batches: (variables, arrays, (items, mask) [K, batch]) -> per-example [K, batch] outputs.

    The outputs are the task's metrics, each times the mask (0 for padding), and the predicted
    `label` and its `probability`. Sums are left to the host, which adds them in float64. With
    `views` all of them are of the logits' average over the views.
    """
    forward = make_forward(model, preprocess, views)

    def eval_call(variables, arrays, items_and_mask):
        def body(_, item_and_mask):
            item, mask = item_and_mask
            images, labels = take(arrays, item)
            logits: Any = forward(variables, images)
            metrics = jax.tree.map(lambda m: m * mask, task.metrics(logits, labels))
            predicted, probability = task.predict(logits)
            return None, metrics | {
                "true_label": labels,
                "label": predicted,
                "probability": probability,
            }

        return jax.lax.scan(body, None, items_and_mask)[1]

    return eval_call
