"""What a training step computes: weights, input, each layer's output, gradients; kept in a file.

A trace is a dict of arrays by name, in the order of computation, and a file of one is a NumPy .npz
that any library can write. docs/verify.md describes the names:

    STEP/parameter/LAYER/NAME   before the step, STEP counted from the first one that was recorded
    STEP/statistic/LAYER/NAME   BatchNorm's running averages, before the step
    STEP/input                  [N, H, W, C], augmented and normalised
    STEP/activation/LAYER       in the order in which layers end; LAYER#2 if it is called twice
    STEP/output                 of the network
    STEP/metric/NAME            means over the batch
    STEP/gradient/LAYER/NAME    of the parameters, last layer first
"""

import contextlib
import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from flaxcnn.audit.replay import open_run, to_device, to_host
from flaxcnn.errors import UserError
from flaxcnn.training.checkpoint import History
from flaxcnn.training.config import Config, normalize
from flaxcnn.training.config_check import validate
from flaxcnn.training.config_json import to_dict
from flaxcnn.training.environment import environment
from flaxcnn.training.experiment import Experiment, open_experiment
from flaxcnn.training.loop import lr_scale
from flaxcnn.training.loss_scale import LossScaleState
from flaxcnn.training.parts import add_loss_scale
from flaxcnn.training.state import TrainState

Trace = dict[str, np.ndarray]

_ABOUT = "about"  # of the arrays in a file the one that is JSON
_BYTES = 2**30  # of all activations of a step: as many examples are kept as fit


def record(
    target: Config | str | Path, file: str | Path, *, steps: int = 2, start: int = 0
) -> dict[str, Any]:
    """See `flaxcnn.audit.record`."""
    if steps < 1:
        raise UserError(f"steps must be at least 1, got {steps}")
    if isinstance(target, Config):
        config = normalize(target)
        validate(config)
        if config.stages:
            raise UserError("a config with stages has no steps of its own: record a stage's run")
        experiment = open_experiment(config)
        if start:
            raise UserError(f"start={start} needs a run, which has a checkpoint there")
        state, history = experiment.initial_state(), []
    else:
        run = open_run(target)
        experiment = run.experiment
        if start and start not in run.saved.steps:
            kept = ", ".join(map(str, [0, *run.saved.steps]))
            raise UserError(f"{target} has no checkpoint of step {start}; there are {kept}")
        state, history = run.restore(start)
    trace: Trace = {}
    for index, (_, arrays, _) in enumerate(Tracer(experiment).steps(start, state, history)):
        trace |= {f"{index}/{name}": array for name, array in arrays.items()}
        if index + 1 == steps:
            break
    about = {
        "first_step": start,
        "config": to_dict(experiment.config),
        "data": dataclasses.asdict(experiment.facts),
        "environment": environment(),
    }
    save_trace(file, trace, about)
    return about


def save_trace(file: str | Path, trace: Trace, about: dict[str, Any]) -> None:
    """Writes a .npz. It has no bfloat16: that is written as float32, and named in `about`."""
    short = [name for name, array in trace.items() if array.dtype == jnp.bfloat16]
    arrays: Any = {name: trace[name].astype(np.float32) for name in short}
    about = {**about, "bfloat16": short}
    try:
        with open(file, "wb") as opened:
            np.savez(opened, **{_ABOUT: np.array(json.dumps(about))}, **(trace | arrays))
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror}") from error


def load_trace(file: str | Path) -> tuple[Trace, dict[str, Any]]:
    """The arrays, in the order of the file, and what it says about them ({} if it is a port's).

    Raises UserError if it is no .npz file.
    """
    try:
        with np.load(file) as saved:
            trace = {name: saved[name] for name in saved.files}
        about = json.loads(str(trace.pop(_ABOUT, "{}")))
    except FileNotFoundError as error:
        raise UserError(f"there is no file {file}") from error
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{file} is no .npz file of arrays: {error}") from error
    for name in about.get("bfloat16", ()):
        trace[name] = trace[name].astype(jnp.bfloat16)
    return trace, about


class Tracer:
    """Does a run's steps one at a time, and looks into each.

    It is a program of its own: its bits may differ from those of the run's calls of several steps.
    With `parallel="pmap"` it is traced under jit.
    """

    def __init__(self, experiment: Experiment):
        config, facts = dataclasses.replace(experiment.config, parallel="jit"), experiment.facts
        self._plain = dataclasses.replace(experiment, config=config, recorded=facts)
        self._feeder = self._plain.feeder(experiment.dataset.splits["train"])
        replicated = self._plain.parallel.replicate(np.zeros(())).sharding
        self._probe = _Probe(self._plain.model, replicated)
        probed: Any = dataclasses.replace(self._plain)
        probed.model, probed.lookahead = self._probe, None
        probed.tx = add_loss_scale(config, _keep_gradient())
        # One program for each size of the training images.
        self._advance, self._look = (
            functools.cache(functools.partial(parts.train_call, self._feeder))
            for parts in (self._plain, probed)
        )

    def steps(
        self, start: int, state: TrainState, history: History
    ) -> Iterator[tuple[int, Trace, Callable[[], TrainState]]]:
        """Each step from `start` on, where a call begins: number, trace, and the host state after.

        The last is computed when it is asked for, or the next step is.
        """
        parallel, plan = self._plain.parallel, self._plain.plan
        arrays = parallel.replicate(self._feeder.arrays)
        scale = lr_scale(self._plain.config, history)
        first = plan.call_at(start)
        state = to_host(state)
        with contextlib.closing(self._feeder.feed(plan, first)) as feed:
            for call, items in zip(range(first, len(plan)), feed, strict=False):
                for index in range(plan.first_step(call + 1) - plan.first_step(call)):
                    item = jax.tree.map(lambda x, i=index: x[i : i + 1], items)
                    item = parallel.split(item)
                    after = functools.cache(
                        functools.partial(self._after, state, arrays, item, scale)
                    )
                    yield plan.first_step(call) + index, self._trace(state, arrays, item), after
                    state = after()

    def _after(self, state: TrainState, arrays: Any, item: Any, scale: float) -> TrainState:
        placed = self._plain.parallel.replicate(to_device(state))
        advance = self._advance(self._plain.stage_at(int(state.step)))
        return to_host(advance(placed, arrays, item, scale)[0])

    def _trace(self, state: TrainState, arrays: Any, item: Any) -> Trace:
        """What is computed in the step of the batch `item` from the host state `state`."""
        gradient: Any = jax.tree.map(np.zeros_like, self._plain.freeze.trained(state.params))
        if scaled := isinstance(state.opt_state, LossScaleState):
            gradient = state.opt_state._replace(inner=gradient)
        bare = to_device(state.replace(opt_state=gradient, ema=None, slow=None))
        self._probe.seen.clear()
        look = self._look(self._plain.stage_at(int(state.step)))
        after, metrics = look(self._plain.parallel.replicate(bare), arrays, item, 1.0)
        gradient = after.opt_state.inner if scaled else after.opt_state
        jax.effects_barrier()
        seen = self._probe.collect()
        position = {name: index for index, name in enumerate(seen)}

        def layer(name: str) -> int:
            return position.get(f"activation/{name.rpartition('/')[0]}", len(seen))

        def of(kind: str, tree: Any, order: Callable[[str], int]) -> Trace:
            arrays = flatten(tree)
            return {f"{kind}/{name}": arrays[name] for name in sorted(arrays, key=order)}

        return {
            **of("parameter", state.params, layer),
            **of("statistic", state.batch_stats, layer),
            **seen,
            **{f"metric/{k}": v for k, v in flatten(jax.device_get(metrics)).items()},
            **of("gradient", jax.device_get(gradient), lambda name: -layer(name)),
        }


class _Probe:
    """Stands where the network does in a training step, and keeps what its layers give."""

    def __init__(self, model: nn.Module, replicated: Any):
        self._model = model
        self._replicated = replicated  # where XLA hands arrays to the host without a complaint
        self._names: list[str] = []  # in the order of computation
        self.seen: list[Mapping[str, Any]] = []  # of each micro-batch of the last step

    def apply(self, variables: Any, images: jax.Array, *more: Any, mutable: Any, **kwargs: Any):
        """`model.apply`, as a training step calls it."""
        ends: list[str] = []  # of layers, by path

        def note(next_call, args, kwargs, context):
            result = next_call(*args, **kwargs)
            if context.method_name == "__call__":
                ends.append("/".join(context.module.path))
            return result

        with nn.intercept_methods(note):
            outputs, updates = self._model.apply(
                variables,
                images,
                *more,
                mutable=[*mutable, "intermediates"],
                capture_intermediates=True,
                **kwargs,
            )
        updates = dict(updates)
        arrays = {"input": images, **_by_layer(updates.pop("intermediates"), ends)}
        self._names = list(arrays)
        kept = _first_examples(arrays, len(images))
        kept = jax.lax.with_sharding_constraint(kept, self._replicated)
        jax.debug.callback(self.seen.append, kept)
        return outputs, updates

    def collect(self) -> Trace:
        """What the last step gave, in the order of computation; micro-batches one after another."""
        return {
            name: np.concatenate([np.atleast_1d(np.asarray(part[name])) for part in self.seen])
            for name in self._names
        }


def _by_layer(intermediates: Mapping[str, Any], ends: list[str]) -> dict[str, jax.Array]:
    """What flax has captured, by name, in the order in which the layers ended."""
    found, calls = {}, Counter()
    for path in ends:
        inner: Any = intermediates
        for key in filter(None, path.split("/")):
            inner = inner[key]
        call, given = calls[path], inner["__call__"]
        calls[path] += 1
        if call < len(given):
            name = f"activation/{path}" if path else "output"
            found |= flatten({f"{name}#{call + 1}" if call else name: given[call]})
    return found


def _first_examples(arrays: dict[str, jax.Array], batch: int) -> dict[str, jax.Array]:
    """As many of the `batch` examples as fit into the limit, at 4 bytes a value."""
    per_example = sum(4 * x.size // batch for x in arrays.values())
    count = min(batch, max(1, _BYTES // per_example))
    return {k: x[:count] if x.shape[:1] == (batch,) else x for k, x in arrays.items()}


def _keep_gradient() -> optax.GradientTransformation:
    """An optimizer that changes nothing, and whose state is the last gradient."""

    def update(updates, state, params=None):
        return jax.tree.map(jnp.zeros_like, updates), updates

    return optax.GradientTransformation(lambda params: jax.tree.map(jnp.zeros_like, params), update)


def flatten(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their paths, "conv1/kernel", in the order of the tree."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in leaves}
