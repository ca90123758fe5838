"""The one file that knows about devices: where arrays live and how a call is compiled.

Two ways, one interface. `Jit` (the default) is the global view: `jax.jit` over a one-axis mesh,
state replicated, batches split, BatchNorm and noise see the global batch. `Pmap` runs one program
per device, with the axis named: the step averages over it, BatchNorm and the noise layers are given
its name. Both give the same losses.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flaxcnn.errors import UserError

AXIS = "data"


class Jit:
    """`jax.jit` over a mesh of all devices with the one axis "data"."""

    axis_name = None

    def __init__(self, devices: Sequence[Any] = ()):
        devices = list(devices) or jax.devices()
        self.num_devices = len(devices)
        # Auto axes: Linen's and optax's code has no sharding annotations for Explicit ones.
        mesh = Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))
        self._replicated = NamedSharding(mesh, PartitionSpec())
        self._batch = NamedSharding(mesh, PartitionSpec(None, AXIS))

    def replicate(self, tree: Any) -> Any:
        """Host or device arrays -> one copy on every device."""
        return jax.device_put(tree, self._replicated)

    def split(self, items: Any) -> Any:
        """Arrays [K, batch, ...] -> the batch axis divided among the devices."""
        return jax.device_put(items, self._batch)

    def compile_train(self, call: Callable) -> Callable:
        """Compiles (state, arrays, items, lr_scale) -> (state, metrics); the state is donated."""
        return jax.jit(
            call,
            in_shardings=(self._replicated, self._replicated, self._batch, self._replicated),
            out_shardings=self._replicated,
            donate_argnums=0,
        )

    def compile_eval(self, call: Callable) -> Callable:
        """Compiles (variables, arrays, items) -> (metrics, examples, sums).

        The first two are per example, [K, batch, ...], the last over a batch, [K, ...].
        """
        return jax.jit(
            call,
            in_shardings=(self._replicated, self._replicated, self._batch),
            out_shardings=self._replicated,
        )

    def unreplicate(self, tree: Any) -> Any:
        """One logical copy of what `replicate` or a compiled call returned."""
        return tree


class Pmap:
    """`jax.pmap` with the axis "data"; every array gains a leading device axis."""

    axis_name = AXIS

    def __init__(self, devices: Sequence[Any] = ()):
        self._devices = list(devices) or jax.devices()
        self.num_devices = len(self._devices)
        mesh = Mesh(np.array(self._devices), (AXIS,), axis_types=(AxisType.Auto,))
        self._leading = NamedSharding(mesh, PartitionSpec(AXIS))

    def replicate(self, tree: Any) -> Any:
        """Arrays -> [devices, ...], the same on each."""
        stacked = jax.tree.map(
            lambda x: jnp.broadcast_to(jnp.asarray(x)[None], (self.num_devices, *jnp.shape(x))),
            tree,
        )
        return jax.device_put(stacked, self._leading)

    def split(self, items: Any) -> Any:
        """Arrays [K, batch, ...] -> [devices, K, batch / devices, ...], in the batch's order."""

        def to_devices(x):
            x = x.reshape(x.shape[0], self.num_devices, -1, *x.shape[2:])
            return np.ascontiguousarray(x.swapaxes(0, 1))

        return jax.device_put(jax.tree.map(to_devices, items), self._leading)

    def compile_train(self, call: Callable) -> Callable:
        """As `Jit.compile_train`, on arrays with a leading device axis."""
        mapped = jax.pmap(
            call, AXIS, in_axes=(0, 0, 0, None), donate_argnums=0, devices=self._devices
        )

        def train_call(state, arrays, items, lr_scale):
            state, metrics = mapped(state, arrays, items, lr_scale)
            return state, self.unreplicate(metrics)

        return train_call

    def compile_eval(self, call: Callable) -> Callable:
        """As `Jit.compile_eval`: the devices' examples side by side, and their sums added up."""
        mapped = jax.pmap(call, AXIS, devices=self._devices)

        def eval_call(variables, arrays, items):
            *examples, sums = mapped(variables, arrays, items)
            metrics, examples = jax.tree.map(
                lambda x: np.asarray(x).swapaxes(0, 1).reshape(x.shape[1], -1, *x.shape[3:]),
                examples,
            )
            return metrics, examples, jax.tree.map(lambda x: np.asarray(x).sum(axis=0), sums)

        return eval_call

    def unreplicate(self, tree: Any) -> Any:
        """The first device's copy."""
        return jax.tree.map(lambda x: x[0], tree)


def make_parallel(kind: str, devices: Sequence[Any] = ()) -> Jit | Pmap:
    """`Jit` or `Pmap` by the config's `parallel`, over all devices unless some are given."""
    return Pmap(devices) if kind == "pmap" else Jit(devices)


def check_divisible(field: str, batch_size: int, num_devices: int, accumulate: int = 1) -> None:
    """Raises UserError unless a (micro-)batch can be divided equally among the devices."""
    if batch_size % (num_devices * accumulate):
        micro = f" times optimizer.accumulate {accumulate}" if accumulate > 1 else ""
        raise UserError(
            f"{field} must be a multiple of the number of devices, {num_devices}{micro}; "
            f"got {batch_size}"
        )
