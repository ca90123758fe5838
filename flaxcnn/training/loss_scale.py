"""Dynamic loss scaling, for gradients in float16 (Micikevicius 2018, section 3.2).

float16 rounds what is below 3e-8 to 0 and has nothing above 65,504. So the loss is multiplied by a
scale before it is differentiated, and gradients, in float32 again, are divided by it. Where one is
not finite the scale was too large: it is halved, and the update is skipped.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

LEAST = 1.0  # as jmp's; PyTorch's scale falls without end


class LossScaleState(NamedTuple):
    """The state of `scale_loss`."""

    scale: jax.Array  # float32 [], what the next loss is multiplied by
    good_steps: jax.Array  # int32 [], since it was changed
    skipped_steps: jax.Array  # int32 [], of the run
    inner: Any  # the optimizer's own


def scale_loss(
    inner: optax.GradientTransformation, *, initial: float = 2.0**16, growth_interval: int = 2000
) -> optax.GradientTransformation:
    """`inner` for gradients of a loss that has been multiplied by `scale` of the state.

    After `growth_interval` good steps in a row the scale is doubled, after a gradient that is not
    finite halved; rule and defaults are those of PyTorch's GradScaler, but for the least scale of
    1. A skipped update changes nothing but the scale and the place in the learning rate's schedule,
    which follows the steps of the run.
    """

    def init(params: Any) -> LossScaleState:
        zero = jnp.zeros((), jnp.int32)
        return LossScaleState(
            jnp.asarray(initial, jnp.float32), zero, zero.copy(), inner.init(params)
        )

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, LossScaleState]:
        gradients = jax.tree.map(lambda g: g / state.scale, updates)
        finite = jnp.stack([jnp.isfinite(g).all() for g in jax.tree.leaves(gradients)]).all()
        updates, inner_state = inner.update(gradients, state.inner, params)
        updates = jax.tree.map(lambda u: jnp.where(finite, u, 0), updates)

        def keep(new: Any, old: Any) -> Any:
            return new if _is_schedule(new) else jnp.where(finite, new, old)

        inner_state = jax.tree.map(keep, inner_state, state.inner, is_leaf=_is_schedule)
        good = state.good_steps + 1
        doubled = state.scale * 2
        grows = (good == growth_interval) & jnp.isfinite(doubled)
        return updates, LossScaleState(
            scale=jnp.where(
                finite,
                jnp.where(grows, doubled, state.scale),
                jnp.maximum(state.scale / 2, LEAST),
            ),
            good_steps=jnp.where(finite & (good < growth_interval), good, 0),
            skipped_steps=state.skipped_steps + jnp.where(finite, 0, 1),
            inner=inner_state,
        )

    return optax.GradientTransformation(init, update)


def _is_schedule(node: Any) -> bool:
    return isinstance(node, optax.ScaleByScheduleState)
