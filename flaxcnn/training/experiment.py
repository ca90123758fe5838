"""From a config to the parts of a run: data, network, task, optimizer, compiled calls."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from flaxcnn.data.augment import (
    Augment,
    View,
    augmented_shape,
    make_augment,
    read_views,
    viewed_shape,
)
from flaxcnn.data.feeders import EvalPlan, Resident, Streaming, TrainPlan
from flaxcnn.data.imbalance import Draws, by_label, make_draws, subsample
from flaxcnn.data.record import Record, refuse
from flaxcnn.data.sources import Dataset, absolute_source, compute_normalization, load_dataset
from flaxcnn.data.splits import ArraySplit, Split
from flaxcnn.errors import UserError
from flaxcnn.models._registry import create_model
from flaxcnn.tasks.classification import Classification
from flaxcnn.tasks.losses import compute_class_weights, make_loss
from flaxcnn.training.config import Config, to_dict
from flaxcnn.training.momentum import judge_momentum, record_momentum
from flaxcnn.training.optim import Lookahead, make_lookahead, make_optimizer
from flaxcnn.training.schedules import make_schedule
from flaxcnn.training.sharding import check_divisible, make_parallel
from flaxcnn.training.state import TrainState, make_state
from flaxcnn.training.step import (
    check_takes,
    make_eval_call,
    make_preprocess,
    make_train_call,
    make_train_step,
)
from flaxcnn.training.workdir import Workdir

# Multiply-adds per second that a call is planned with, for about half a second of work. Fixed
# numbers and no clock: the steps per call decide the bits of the result.
_PLANNED_RATE = {"cpu": 2e10, "gpu": 2e13, "tpu": 2e13}
_STREAMED_BYTES_PER_CALL = 2**26
_INITIAL_IMAGES = 5000  # that a network with `initialize_from` sees (Jordan 2024, section 3.2)


@dataclasses.dataclass
class Facts:
    """What a run found out at its start, saved as run.json so that it never changes after.

    `mean` and `std` are per channel, of the training split's pixels scaled to 0..1.
    `data_version` tells the data set from another: of a folder the SHA-256 of the names, sizes and
    splits of its files (splits.json has the list), of tfds name and version.
    """

    class_names: list[str]
    image_shape: list[int]  # height, width, channels
    examples: dict[str, int]  # per split
    skipped: int  # damaged images left out
    mean: list[float]
    std: list[float]
    parameters: int
    steps_per_call: int
    train_images: list[int] = dataclasses.field(default_factory=list)  # per class, see `Draws`;
    train_draws: list[int] = dataclasses.field(default_factory=list)  # [] in runs of old versions
    norm_momentum: float = 0.0  # the largest of BatchNorm; 0 without, and in runs of old versions
    data_version: str = ""  # "" in runs of old versions
    extended: list[int] = dataclasses.field(default_factory=list)  # epochs, see `extend.py`

    @classmethod
    def read(cls, workdir: Workdir) -> "Facts":
        """The facts of the run in `workdir`; what an old one has not recorded is left empty.

        Raises UserError if it lacks more, or has a field that this version does not know.
        """
        values, file = workdir.read("run"), workdir.path / "run.json"
        known = {field.name: field for field in dataclasses.fields(cls)}
        for name in values:
            if name not in known:
                raise UserError(f"{file} was written by another flaxcnn: it has a field {name}")
        for name, field in known.items():
            needed = field.default is field.default_factory is dataclasses.MISSING
            if needed and name not in values:
                raise UserError(f"{file} is damaged: it has no field {name}")
        return cls(**values)


@dataclasses.dataclass
class Experiment:
    """A config with its data and facts; the parts are made when first used."""

    config: Config
    facts: Facts
    dataset: Dataset

    @cached_property
    def parallel(self):
        """How calls are compiled and arrays placed."""
        return make_parallel(self.config.parallel)

    @cached_property
    def model(self) -> nn.Module:
        """The network, with one output per class unless the config says otherwise."""
        return make_model(self.config, self.facts.class_names, self.parallel.axis_name)

    @cached_property
    def task(self) -> Classification:
        """Loss, metrics and predictions."""
        task, loss = make_task(self.config, self.facts.class_names), self.config.loss
        if loss.class_weights == "none":
            return task
        counts = self.draws.per_class
        weights = compute_class_weights(loss.class_weights, counts, loss.effective_beta)
        return dataclasses.replace(task, class_weights=tuple(weights.tolist()))

    @cached_property
    def draws(self) -> Draws:
        """How often an epoch shows each class."""
        return _make_draws(self.config, self.dataset)

    @cached_property
    def plan(self) -> TrainPlan:
        """Which examples each call of the run sees."""
        return TrainPlan(
            num_examples=self.facts.examples["train"],
            batch_size=self.config.data.batch_size,
            steps_per_call=self.facts.steps_per_call,
            epochs=self.config.epochs + sum(self.facts.extended),
            seed=self.config.seed,
            draws=self.draws,
        )

    @cached_property
    def schedule(self) -> optax.Schedule:
        """Learning rate by step."""
        steps_per_epoch, epochs = self.plan.steps_per_epoch, self.config.epochs
        schedule: Any = make_schedule(self.config.optimizer, steps_per_epoch, epochs)
        if not self.facts.extended:
            return schedule
        last = steps_per_epoch * epochs - 1  # whose rate the added epochs keep
        return lambda step: schedule(jnp.minimum(step, last))

    @cached_property
    def tx(self) -> optax.GradientTransformation:
        """The optimizer."""
        return make_optimizer(self.config.optimizer, self.schedule)

    @cached_property
    def lookahead(self) -> Lookahead | None:
        """What follows the optimizer."""
        return make_lookahead(self.config.optimizer, self.plan.total_steps)

    @cached_property
    def preprocess(self):
        """uint8 images -> normalised float32."""
        return make_preprocess(self.facts.mean, self.facts.std)

    def warnings(self) -> list[str]:
        """What the user should know of this run before it starts."""
        updates = self.plan.total_steps * self.config.optimizer.accumulate
        found = judge_momentum(self.facts.norm_momentum, updates, self.model)
        return [found] if found else []

    def initial_state(self) -> TrainState:
        """The run at step 0, a function of the config and the training split's first images."""
        initialize_from = getattr(self.model, "initialize_from", None)
        if initialize_from is None:
            return self._make_state(self.model, self.tx)
        train = self.dataset.splits["train"]
        images, _ = train.load(np.arange(min(len(train), _INITIAL_IMAGES)))
        images = self.preprocess(jnp.asarray(images))
        initialize = functools.partial(initialize_from, images=images)
        return self._make_state(self.model, self.tx, initialize)

    def abstract_state(self) -> TrainState:
        """Shapes and types of the state."""
        # The parts are made out here: what is cached must not hold values of a trace.
        return jax.eval_shape(functools.partial(self._make_state, self.model, self.tx))

    def _make_state(
        self,
        model: nn.Module,
        tx: optax.GradientTransformation,
        initialize: Callable[[Any], Any] | None = None,
    ) -> TrainState:
        optimizer = self.config.optimizer
        return make_state(
            model,
            tx,
            self.facts.image_shape,
            seed=self.config.seed,
            ema=optimizer.ema_decay > 0,
            lookahead=optimizer.lookahead_every > 0,
            initialize=initialize,
        )

    def feeder(self, split: Split) -> Resident | Streaming:
        """The split on the device, or streamed where it was too large to be kept in memory."""
        data = self.config.data
        in_memory = isinstance(split, ArraySplit)
        if data.feeder == "resident" or (data.feeder == "auto" and in_memory):
            return Resident(split)
        return Streaming(split, data.workers)

    def train_call(self, feeder: Resident | Streaming):
        """Compiled: (state, arrays, items, lr_scale) -> (state, metrics)."""
        step = make_train_step(
            self.model,
            self.task,
            self.tx,
            self.preprocess,
            augment=self._make_augment(),
            accumulate=self.config.optimizer.accumulate,
            ema_decay=self.config.optimizer.ema_decay,
            lookahead=self.lookahead,
            auxiliary_weight=self.config.loss.auxiliary_weight,
            axis_name=self.parallel.axis_name,
        )
        return self.parallel.compile_train(make_train_call(step, feeder.batch))

    def _make_augment(self) -> Augment | None:
        data, shape = self.config.data, self.facts.image_shape
        if not data.augment:
            return None
        classes = _augment_labels(self.config, self.facts.class_names)
        steps, axis = self.plan.steps_per_epoch, self.parallel.axis_name
        return make_augment(data.augment, shape, steps, axis, classes=classes)

    def evaluator(self, split: Split, views: Sequence[View] = ()) -> "Evaluator":
        """Exact evaluation on `split`."""
        return Evaluator(self, split, views)


class Evaluator:
    """Runs a network over one split: every example once, the last batch padded and masked.

    With `views`, once in each of them: the logits are averaged.
    """

    def __init__(self, experiment: Experiment, split: Split, views: Sequence[View] = ()):
        config, self._parallel = experiment.config, experiment.parallel
        self._feeder = experiment.feeder(split)
        self._examples = len(split)
        self._plan = EvalPlan(
            len(split), config.data.eval_batch_size, experiment.facts.steps_per_call
        )
        self._arrays = self._parallel.replicate(self._feeder.arrays)
        self._call = self._parallel.compile_eval(
            make_eval_call(
                experiment.model, experiment.task, experiment.preprocess, self._feeder.batch, views
            )
        )

    def __call__(self, variables: Any) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Means over the split, and per example its true_label, label and probability [N]."""
        outputs = []
        for index, items in enumerate(self._feeder.feed(self._plan)):
            items = self._parallel.split((items, self._plan.mask(index)))
            outputs.append(jax.device_get(self._call(variables, self._arrays, items)))
        flat = {
            name: np.concatenate([o[name].reshape(-1) for o in outputs])[: self._examples]
            for name in outputs[0]
        }
        examples = {name: flat.pop(name) for name in ("true_label", "label", "probability")}
        means = {name: float(np.mean(v, dtype=np.float64)) for name, v in flat.items()}
        return means, examples


def make_model(config: Config, class_names: list[str], axis_name: str | None) -> nn.Module:
    """The config's network, with one output per class unless `model.kwargs` says otherwise."""
    kwargs = {
        "num_classes": len(class_names),
        **config.model.kwargs,
        "dtype": jnp.dtype(config.precision),
        "axis_name": axis_name,
    }
    return create_model(config.model.name, **kwargs)


def make_task(config: Config, class_names: list[str]) -> Classification:
    """The config's task on these classes."""
    loss = make_loss(
        name=config.loss.name,
        label_smoothing=config.loss.label_smoothing,
        focal_gamma=config.loss.focal_gamma,
    )
    return Classification(tuple(class_names), loss)


def load_data(config: Config, record: Record | None = None) -> Dataset:
    """The config's data set, its training split with the share of each class to be kept.

    With the `record` of a run, the set and the splits that the run has recorded.
    """
    data = config.data
    dataset = load_dataset(
        data.source,
        image_size=data.image_size,
        resize=data.resize,
        channels=data.channels,
        split=data.split,
        validation=data.validation,
        seed=config.seed,
        on_bad_image=data.on_bad_image,
        resident_limit=data.resident_limit,
        record=record,
    )
    train = subsample(
        dataset.splits["train"], dataset.class_names, data.subsample.to_dict(), config.seed
    )
    return dataclasses.replace(dataset, splits=dataset.splits | {"train": train})


def reload_data(config: Config, facts: Facts, workdir: Workdir) -> Dataset:
    """The data set of the run in `workdir`. Raises UserError if it is not as `facts` have it."""
    source = config.data.source
    kind, _, path = source.partition(":")
    if kind == "folder" and not Path(path).expanduser().is_dir():
        raise UserError(
            f"the run's data set, {source}, is not there; where it has been moved to is said by "
            "data.source to training and by --source to evaluate"
        )
    dataset = load_data(config, workdir.record())
    changes = []
    if list(dataset.image_shape) != list(facts.image_shape):
        shapes = ["x".join(map(str, shape)) for shape in (dataset.image_shape, facts.image_shape)]
        changes.append(f"images are {shapes[0]}, they were {shapes[1]}")
    for name in facts.examples | dataset.splits:
        before, after = facts.examples.get(name, 0), len(dataset.splits.get(name, ()))
        if before != after:
            changes.append(f"{name} has {after} images, it had {before}")
    counts = np.bincount(dataset.splits["train"].labels, minlength=len(facts.class_names))
    for name, before, after in zip(facts.class_names, facts.train_images, counts, strict=False):
        if before != after and not changes:
            changes.append(f"train has {after} images of class {name!r}, it had {before}")
    if changes:
        raise refuse(source, changes)
    return dataset


def _make_draws(config: Config, dataset: Dataset) -> Draws:
    return make_draws(
        dataset.splits["train"].labels,
        dataset.class_names,
        sampler=config.data.sampler,
        repeat_threshold=config.data.repeat_threshold,
        expand=config.data.expand.to_dict(),
    )


def _augment_labels(config: Config, class_names: Sequence[str]) -> list[int]:
    """The labels of `data.augment_classes`. Raises UserError for an unknown class."""
    names = config.data.augment_classes
    return list(by_label("data.augment_classes", class_names, dict.fromkeys(names)))


def make_experiment(config: Config, workdir: Workdir) -> Experiment:
    """The run of `workdir`: its facts are found on the first start and read on later ones.

    Everything the config can get wrong has been tried before the first file is written.
    """
    source = absolute_source(config.data.source)  # it outlives the folder that a command runs in
    if workdir.has("run"):
        facts = Facts.read(workdir)
        dataset = reload_data(config, facts, workdir)
        saved = workdir.read("config")
        if saved["data"]["source"] != source:  # the same files, in another place
            workdir.write("config", saved | {"data": saved["data"] | {"source": source}})
        return Experiment(config, facts, dataset)
    # The optimizer's mistakes are told before a large data set is read; any epoch length will do.
    schedule = make_schedule(config.optimizer, 1000, config.epochs)
    make_optimizer(config.optimizer, schedule)
    make_lookahead(config.optimizer, 1000 * config.epochs)
    dataset = load_data(config)
    experiment = Experiment(config, find_facts(config, dataset), dataset)
    _ = experiment.plan  # refuses a batch larger than the split
    data = dataclasses.replace(config.data, source=source)
    workdir.write("config", to_dict(dataclasses.replace(config, data=data)))
    if dataset.files:
        workdir.write("splits", dict(dataset.files))
    else:  # that of a start which ended before it wrote run.json
        (workdir.path / "splits.json").unlink(missing_ok=True)
    workdir.write("run", dataclasses.asdict(experiment.facts))
    return experiment


def find_facts(config: Config, dataset: Dataset) -> Facts:
    """Measures the training split and the network. Raises UserError where they do not fit."""
    if "validation" not in dataset.splits:
        for field, needed in (
            (f"early_stopping={config.early_stopping}", config.early_stopping > 0),
            ("optimizer.schedule=plateau", config.optimizer.schedule == "plateau"),
        ):
            if needed:
                raise UserError(f"{field} needs a validation split: set data.validation")
    parallel = make_parallel(config.parallel)
    batch = config.data.batch_size
    check_divisible("data.batch_size", batch, parallel.num_devices, config.optimizer.accumulate)
    check_divisible("data.eval_batch_size", config.data.eval_batch_size, parallel.num_devices)
    seen = augmented_shape(config.data.augment, dataset.image_shape)
    viewed = viewed_shape(read_views(config.data.views, dataset.image_shape), dataset.image_shape)
    _augment_labels(config, dataset.class_names)
    draws = _make_draws(config, dataset)
    task = make_task(config, list(dataset.class_names))
    model = make_model(config, list(dataset.class_names), None)
    with record_momentum() as momenta:
        state = jax.eval_shape(
            lambda: make_state(model, optax.identity(), dataset.image_shape, seed=0)
        )
    for field, shape in (("data.augment", seen), ("data.views", viewed)):
        if shape != dataset.image_shape:
            check_takes(model, state.variables, shape, field)
    images = jax.ShapeDtypeStruct((1, *seen), jnp.float32)
    forward = jax.jit(lambda variables, x: model.apply(variables, x, train=False))
    traced = forward.trace(state.variables, images)
    task.check_outputs(traced.out_info.shape[-1])
    steps_per_epoch = max(1, len(draws) // batch)
    cost = traced.lower(lowering_platforms=("cpu",)).cost_analysis()
    assert cost is not None  # on CPU it is always known
    planned = _plan_steps_per_call(
        macs=3
        * batch
        * cost["flops"]
        / 2,  # forward, gradient of the input, gradient of the kernel
        streamed_bytes=batch * int(np.prod(dataset.image_shape)),
        steps_per_epoch=steps_per_epoch,
    )
    mean, std = compute_normalization(dataset.splits["train"])
    return Facts(
        class_names=list(dataset.class_names),
        image_shape=list(dataset.image_shape),
        examples={name: len(split) for name, split in dataset.splits.items()},
        skipped=dataset.skipped,
        mean=mean.tolist(),
        std=std.tolist(),
        parameters=sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(state.params)),
        steps_per_call=config.steps_per_call or planned,
        train_images=np.bincount(draws.labels, minlength=len(dataset.class_names)).tolist(),
        train_draws=draws.per_class.tolist(),
        norm_momentum=max(momenta, default=0.0),
        data_version=dataset.version,
    )


def _plan_steps_per_call(macs: float, streamed_bytes: int, steps_per_epoch: int) -> int:
    """Steps for about half a second, in calls of equal length where an epoch allows it."""
    rate = _PLANNED_RATE.get(jax.default_backend(), _PLANNED_RATE["gpu"])
    most = min(rate / 2 / macs, _STREAMED_BYTES_PER_CALL / streamed_bytes, 100)
    calls = -(-steps_per_epoch // max(1, int(most)))
    return -(-steps_per_epoch // calls)
