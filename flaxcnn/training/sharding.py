"""The one file that knows about devices: where arrays live and how a call is compiled.

Two ways, one interface. `Jit` (the default) is the global view: `jax.jit` over a one-axis mesh,
state replicated, batches split, BatchNorm and noise see the global batch. `Pmap` runs one program
per device, with the axis named: the step averages over it, BatchNorm and the noise layers are given
its name. Both give the same losses.

The devices of `Jit` may belong to several processes. Each runs the same code and has to start the
same computations in the same order, so whatever one of them decides alone (a stop, a mistake, the
files of a run) is exchanged first, by the functions at the end of this file. They are collectives
of the devices, which must not run beside a step: only the thread that trains may call them. The
first process has the run's folder, and it alone writes and prints.
"""

import contextlib
import os
import pickle
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flaxcnn.data.plans import EvalPlan, Plan, Share, TrainPlan
from flaxcnn.errors import UserError
from flaxcnn.exit_status import FAILED, MISTAKE

AXIS = "data"
AUTO = "auto"  # a coordinator that JAX finds itself
_CHUNK = 2**26  # bytes that are broadcast at a time

T = TypeVar("T")


class Jit:
    """`jax.jit` over a mesh of all devices with the one axis "data"."""

    axis_name = None

    def __init__(self, devices: Sequence[Any] = ()):
        # Those of a process side by side: its share of a batch is one piece.
        devices = list(devices) or sorted(jax.devices(), key=lambda device: device.process_index)
        self.num_devices, self._processes = len(devices), count_processes()
        # Auto axes: Linen's and optax's code has no sharding annotations for Explicit ones.
        mesh = Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))
        self._replicated = NamedSharding(mesh, PartitionSpec())
        self._batch = NamedSharding(mesh, PartitionSpec(None, AXIS))

    def replicate(self, tree: Any) -> Any:
        """Host or device arrays -> one copy on every device."""
        if self._processes == 1:
            return jax.device_put(tree, self._replicated)
        return jax.tree.map(lambda x: self._place(x, self._replicated, 1), tree)

    def share(self, plan: TrainPlan | EvalPlan) -> Plan:
        """What of a plan this process loads, for its devices: an equal piece of each batch."""
        if self._processes == 1:
            return plan
        return Share(plan, jax.process_index(), self._processes)

    def split(self, items: Any) -> Any:
        """This process's share of arrays [K, batch, ...] -> the batch divided among all devices."""
        if self._processes == 1:
            return jax.device_put(items, self._batch)
        return jax.tree.map(lambda x: self._place(x, self._batch, self._processes), items)

    def _place(self, x: Any, sharding: NamedSharding, pieces: int) -> jax.Array:
        """Makes an array of this process's piece of the second axis; of all of it where it is 1."""
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(
                self._place(jax.random.key_data(x), sharding, pieces), impl=jax.random.key_impl(x)
            )
        x = np.asarray(x)
        shape = x.shape if pieces == 1 else (x.shape[0], x.shape[1] * pieces, *x.shape[2:])
        return jax.make_array_from_process_local_data(sharding, x, shape)

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
        return tree if self._processes == 1 else jax.tree.map(_own_copy, tree)


class Pmap:
    """`jax.pmap` with the axis "data"; every array gains a leading device axis.

    Raises UserError where there is more than one process: `Jit` is for that.
    """

    axis_name = AXIS

    def __init__(self, devices: Sequence[Any] = ()):
        if (processes := count_processes()) > 1:
            raise UserError(
                f"parallel=pmap is for one process, and there are {processes}: use parallel=jit"
            )
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

    def share(self, plan: TrainPlan | EvalPlan) -> Plan:
        """All of it: there is one process."""
        return plan

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


def _own_copy(x: jax.Array) -> jax.Array:
    """A replicated array of all processes as one of this process alone."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = _own_copy(jax.random.key_data(x))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    return x.addressable_data(0)


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


class AgreedError(UserError):
    """A mistake that every process raises at the same place, so that none waits for another."""


def join(coordinator: str = "", count: int | None = None, index: int | None = None) -> None:
    """Initialises `jax.distributed` if there are other processes; at once, before JAX computes.

    By the arguments; else by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID (or
    JOB_COMPLETION_INDEX, of a Kubernetes Job); else JAX finds out, where a launcher has started
    several (srun, mpirun, GKE on TPUs) or `coordinator` is "auto" (Cloud TPU VMs). Never twice:
    who has initialised it already, as Ray has, is left alone.

    Raises UserError if something is missing, or JAX cannot.
    """
    if jax.distributed.is_initialized():
        return
    given = find_processes(coordinator, count, index, os.environ)
    if given is None and not is_launched(os.environ) and coordinator != AUTO:
        return
    try:
        found: Any = given or ()
        jax.distributed.initialize(*found)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"the processes of the run cannot be joined ({reason}); give --coordinator HOST:PORT, "
            "--num-processes and --process-id"
        ) from error


@contextlib.contextmanager
def leaving() -> Iterator[None]:
    """Ends this process at once where it fails alone: the others would wait for it for minutes.

    At its usual end JAX waits for the others, and they for this one, in a step.
    """
    try:
        yield
    except AgreedError:
        raise
    except BaseException as error:
        if count_processes() == 1:
            raise
        known = isinstance(error, UserError)
        print(f"flaxcnn: {error}" if known else traceback.format_exc(), file=sys.stderr, flush=True)
        os._exit(MISTAKE if known else FAILED)


def find_processes(
    coordinator: str, count: int | None, index: int | None, environ: Mapping[str, str]
) -> tuple[str, int, int] | None:
    """(coordinator, number of processes, this one's), of the flags or else of the environment.

    None where neither says. Raises UserError if one of the three is missing or out of range.
    """
    names = ("--coordinator", "--num-processes", "--process-id")
    values: Any = [coordinator, count, index]
    if coordinator == AUTO and count is index is None:
        return None
    if coordinator == "" and count is index is None:
        names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
        values = [environ.get(name, "") for name in names]
        values[2] = values[2] or environ.get("JOB_COMPLETION_INDEX", "")
        if not values[0] or not values[1]:
            return None
        values[1:] = (int(value) if value.isdecimal() else None for value in values[1:])
    if missing := [n for n, v in zip(names, values, strict=True) if v in ("", None)]:
        raise UserError(f"{' and '.join(missing)} must be given with the others of {names}")
    _, processes, own = values
    if not 0 <= own < processes:
        raise UserError(f"{names[2]} must be in 0..{names[1]} - 1, got {own} of {processes}")
    return tuple(values)


def is_launched(environ: Mapping[str, str]) -> bool:
    """Whether a launcher that JAX knows has started this process as one of several."""
    counts = (environ.get(name, "") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
    hosts = environ.get("TPU_WORKER_HOSTNAMES", "")
    slices = environ.get("MEGASCALE_NUM_SLICES", "1")
    return any(n.isdecimal() and int(n) > 1 for n in (*counts, slices)) or "," in hosts


def count_processes() -> int:
    """How many processes there are."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return count_processes() == 1 or jax.process_index() == 0


def gather(value: T) -> list[T]:
    """Each process's `value`, in order, in all of them."""
    if count_processes() == 1:
        return [value]
    content = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(content)))
    # A power of two: few programs are compiled.
    padded = np.zeros(1 << int(sizes.max()).bit_length(), np.uint8)
    padded[: len(content)] = content
    rows = multihost_utils.process_allgather(padded)
    return [pickle.loads(row[:n].tobytes()) for row, n in zip(rows, sizes, strict=True)]


def from_first(value: T) -> T:
    """The first process's `value`, in all of them: a tree of NumPy arrays, however large."""
    if count_processes() == 1:
        return value
    content = np.frombuffer(pickle.dumps(value) if is_first() else b"", np.uint8)
    (size, *_) = gather(len(content))
    received, step = [], min(_CHUNK, size)
    for start in range(0, size, step):
        chunk = np.zeros(step, np.uint8)
        part = content[start : start + step]
        chunk[: len(part)] = part
        received.append(multihost_utils.broadcast_one_to_all(chunk))
    return pickle.loads(np.concatenate(received)[:size].tobytes())


def tree_from_first(tree: Any, shapes: Callable[[], Any]) -> Any:
    """The first process's tree of arrays, in all of them on the host; `shapes` gives its like."""
    if count_processes() == 1:
        return tree
    like = shapes()
    typed = [jnp.issubdtype(x.dtype, jax.dtypes.prng_key) for x in jax.tree.leaves(like)]
    leaves = jax.tree.leaves(tree) if is_first() else []
    raw = (jax.random.key_data(x) if t else x for x, t in zip(leaves, typed, strict=False))
    raw: Any = from_first([np.asarray(x) for x in raw])
    leaves = [jax.random.wrap_key_data(x) if t else x for x, t in zip(raw, typed, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def together(make: Callable[[], T]) -> T:
    """This process's `make()`. Raises AgreedError in all where it raises UserError in one."""
    return _outcomes(make)[0]


def any_process(ask: Callable[[], bool]) -> bool:
    """Whether `ask()` is true in some process; raises as `together`."""
    answer, others = _outcomes(ask, share=True)
    return any(others) or answer


def on_first(make: Callable[[], T]) -> T | None:
    """`make()` of the first process, None in the others; raises as `together`."""
    return together(lambda: make() if is_first() else None)


def _outcomes(make: Callable[[], T], share: bool = False) -> tuple[T, list[T]]:
    """What `make` gives here, and with `share` in each process."""
    if count_processes() == 1:
        return (value := make()), [value]
    value, error = None, ""
    try:
        value = make()
    except UserError as caught:
        error = str(caught)
    outcomes = gather((value if share else None, error))
    for number, (_, error) in enumerate(outcomes):
        if error:
            raise AgreedError(f"process {number}: {error}" if number else error)
    return value, [value for value, _ in outcomes]  # pyright: ignore[reportReturnType]
