"""The pure training step and evaluation step, and K of them in one call. No device is named here.

What a call is given: `arrays`, what stays on the device for the whole run (the resident feeder's
split, or nothing), and `items`, with leading axes [K, batch]: indices into `arrays`, or the images
and targets themselves. `take(arrays, item)` makes a batch, (images, targets), of one item.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from flaxcnn.data.augment import Augment, View, average_over
from flaxcnn.data.feeders import Batch
from flaxcnn.errors import UserError
from flaxcnn.tasks.task import Task
from flaxcnn.training.freeze import NOTHING_HELD, Freeze, overlay
from flaxcnn.training.loss_scale import LossScaleState
from flaxcnn.training.masks import keep_equal, keep_zeros, sum_equal
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


@dataclasses.dataclass(frozen=True, eq=False)
class TrainStep:
    """One optimizer update: (state, (images, targets), lr_scale) -> (state, metrics).

    `metrics` are means over the batch, of the task's that are one number per example; what is
    minimised is the mean of its losses. `lr_scale` multiplies the update.

    Where `tx` is of `scale_loss`, an update that it skips leaves batch statistics and averages as
    they are; "skipped_steps" of the metrics is 1 then and the others are 0. What a state has in
    `mask` and `leaders` it keeps at zero, and equal.

    Attributes:
      augment: what happens to images, and to targets with them, before all this.
      accumulate: micro-batches, over which the gradient is a mean; BatchNorm then sees
        batch / accumulate examples at a time.
      freeze: what stays as it is; the gradient is that of the rest alone.
      lookahead: moves weights and batch statistics after the update.
      axis_name: pmap's axis, over which gradients, statistics and metrics are averaged.
    """

    model: nn.Module
    task: Task
    tx: optax.GradientTransformation
    preprocess: Callable[[jax.Array], jax.Array]
    augment: Augment | None = None
    freeze: Freeze = NOTHING_HELD
    accumulate: int = 1
    ema_decay: float = 0.0
    lookahead: Lookahead | None = None
    axis_name: str | None = None

    def __call__(
        self, state: TrainState, batch: Batch, lr_scale: Any
    ) -> tuple[TrainState, Metrics]:
        """The next state, and what was measured before the update."""
        if self.augment is not None:
            batch = self.augment(state.key, state.step, *batch)
        trained = self.freeze.trained(state.params)
        grads, batch_stats, metrics = self._gradients(state, trained, batch)
        batch_stats = self.freeze.moving(batch_stats)
        if self.axis_name is not None:
            grads, batch_stats, metrics = jax.lax.pmean(
                (grads, batch_stats, metrics), self.axis_name
            )
        batch_stats = overlay(state.batch_stats, batch_stats)
        grads = keep_zeros(state.mask, sum_equal(state.leaders, grads))
        updates, opt_state = self.tx.update(grads, state.opt_state, trained)
        skipped = None
        if isinstance(opt_state, LossScaleState):
            before: Any = state.opt_state
            skipped = opt_state.skipped_steps > before.skipped_steps
            batch_stats = _keep_where(skipped, state.batch_stats, batch_stats)
            metrics = _keep_where(skipped, jax.tree.map(jnp.zeros_like, metrics), metrics)
            metrics["skipped_steps"] = skipped.astype(jnp.float32)
        updates = jax.tree.map(lambda u: u * lr_scale, updates)
        trained = optax.apply_updates(trained, updates)
        trained = keep_zeros(state.mask, keep_equal(state.leaders, trained))
        slow, ema = state.slow, state.ema
        if self.lookahead is not None:
            now = (trained, batch_stats)
            (trained, batch_stats), slow = self.lookahead(state.step + 1, now, slow)
        if ema is not None:
            # The average of few steps must not remember the initial values (as in TensorFlow).
            decay = jnp.minimum(self.ema_decay, (1 + state.step) / (10 + state.step))
            average = optax.incremental_update(trained, ema, 1 - decay)
            ema = average if skipped is None else _keep_where(skipped, ema, average)
        state = state.replace(
            step=state.step + 1,
            params=overlay(state.params, trained),
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema=ema,
            slow=slow,
        )
        return state, metrics

    def _gradients(self, state: TrainState, trained: Any, batch: Batch) -> tuple[Any, Any, Metrics]:
        """The gradient of `trained`, new batch statistics and metrics, over all micro-batches."""
        scaling: Any = state.opt_state
        scale = scaling.scale if isinstance(scaling, LossScaleState) else None
        differentiate = jax.grad(self._loss, has_aux=True)
        noise_key = jax.random.fold_in(state.key, state.step)
        if self.accumulate == 1:
            grads, (batch_stats, metrics) = differentiate(
                trained, state.params, state.batch_stats, batch, noise_key, scale
            )
            return grads, batch_stats, metrics

        def micro_step(batch_stats, micro):
            index, micro_batch = micro
            key = jax.random.fold_in(noise_key, index)
            grads, (batch_stats, metrics) = differentiate(
                trained, state.params, batch_stats, micro_batch, key, scale
            )
            return batch_stats, (grads, metrics)

        # Micro-batch i holds examples i, i + A, ...: a batch split over devices stays split.
        batches = jax.tree.map(
            lambda x: x.reshape(-1, self.accumulate, *x.shape[1:]).swapaxes(0, 1), batch
        )
        batch_stats, stacked = jax.lax.scan(
            micro_step, state.batch_stats, (jnp.arange(self.accumulate), batches)
        )
        grads, metrics = jax.tree.map(lambda x: jnp.mean(x, axis=0), stacked)
        return grads, batch_stats, metrics

    def _loss(
        self,
        trained: Any,
        params: Any,
        batch_stats: Any,
        batch: Batch,
        key: jax.Array,
        scale: jax.Array | None,
    ) -> Any:
        """What is minimised, with (new batch statistics, metrics) beside it."""
        images, targets = batch
        with self.freeze.hold_statistics():
            outputs, updates = self.model.apply(
                {"params": overlay(params, trained), "batch_stats": batch_stats},
                self.preprocess(images),
                *self.task.inputs(targets),
                train=True,
                rngs={"dropout": key},
                mutable=["batch_stats"],
            )
        measured = self.task.measure(outputs, targets)
        metrics = {name: jnp.mean(x) for name, x in measured.items() if x.ndim == 1}
        loss = self.task.losses(outputs, targets).mean()
        loss = loss if scale is None else loss * scale
        return loss, (updates.get("batch_stats", {}), metrics)


def _keep_where(skipped: jax.Array, old: Any, new: Any) -> Any:
    return jax.tree.map(lambda o, n: jnp.where(skipped, o, n), old, new)


def make_train_call(train_step: TrainStep, take: Callable) -> Callable:
    """K steps: (state, arrays, items [K, batch], lr_scale) -> (state, metrics averaged over K).

    With a loss scale they are averaged over the steps that were not skipped, NaN where all were;
    beside them are the number of "skipped_steps" and the "loss_scale" after the last.

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
        if not isinstance(state.opt_state, LossScaleState):
            return state, jax.tree.map(lambda x: x / steps, sums)
        scaling = {"skipped_steps": sums.pop("skipped_steps"), "loss_scale": state.opt_state.scale}
        means = jax.tree.map(lambda x: x / (steps - scaling["skipped_steps"]), sums)
        return state, means | scaling

    return train_call


def make_forward(
    model: nn.Module, preprocess: Callable[[jax.Array], jax.Array], views: Sequence[View] = ()
) -> Callable[[Any, jax.Array], Any]:
    """(variables, images uint8 [N, H, W, C]) -> what the network returns, for evaluation.

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
    task: Task,
    preprocess: Callable[[jax.Array], jax.Array],
    take: Callable,
    views: Sequence[View] = (),
) -> Callable:
    """K batches: (variables, arrays, (items, mask) [K, batch]) -> (metrics, examples, sums).

    `metrics`, the task's that are one number per example, are [K, batch], each times the mask (0
    for padding); `examples` what the task predicts and expects, [K, batch, ...]; `sums` its other
    metrics, [K, ...], summed over the batch. Adding up is left to the host, in float64. With
    `views` all of them are of the outputs' average over the views.
    """
    forward = make_forward(model, preprocess, views)

    def eval_call(variables, arrays, items_and_mask):
        def body(_, item_and_mask):
            item, mask = item_and_mask
            images, targets = take(arrays, item)
            outputs: Any = forward(variables, images)
            metrics, sums = {}, {}
            for name, value in task.measure(outputs, targets).items():
                if value.ndim == 1:
                    metrics[name] = value * mask
                else:
                    kept = mask.reshape(-1, *(1,) * (value.ndim - 1)).astype(value.dtype)
                    sums[name] = (value * kept).sum(axis=0)
            return None, (metrics, task.expected(targets) | task.predict(outputs), sums)

        return jax.lax.scan(body, None, items_and_mask)[1]

    return eval_call
