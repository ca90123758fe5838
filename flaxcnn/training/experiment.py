"""A run's parts put together: state, plan, optimizer, compiled calls."""

import dataclasses
import functools
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from flaxcnn.data.augment import (
    Augment,
    View,
    find_stages,
    make_augment,
    policy_at,
    read_views,
)
from flaxcnn.data.feeders import Resident, Streaming
from flaxcnn.data.imbalance import Draws
from flaxcnn.data.plans import EvalPlan, TrainPlan
from flaxcnn.data.sources import Dataset, absolute_source
from flaxcnn.data.splits import ArraySplit, Split
from flaxcnn.tasks.task import Task
from flaxcnn.training.config import Config
from flaxcnn.training.config_json import to_dict
from flaxcnn.training.evaluate import Evaluator
from flaxcnn.training.facts import (
    Facts,
    count_classes,
    find_facts,
    make_setting,
    reload_data,
)
from flaxcnn.training.freeze import Freeze
from flaxcnn.training.momentum import judge_momentum
from flaxcnn.training.optim import Lookahead, make_lookahead, make_optimizer
from flaxcnn.training.parts import (
    augment_labels,
    find_draws,
    load_data,
    make_freeze,
    make_model,
    make_run_optimizer,
    make_run_state,
    make_task,
)
from flaxcnn.training.schedules import make_schedule
from flaxcnn.training.sharding import make_parallel
from flaxcnn.training.state import TrainState
from flaxcnn.training.step import TrainStep, make_preprocess, make_train_call
from flaxcnn.training.workdir import Workdir

_INITIAL_IMAGES = 5000  # that a network with `initialize_from` sees (Jordan 2024, section 3.2)


@dataclasses.dataclass
class Experiment:
    """A config and its data set; every part is made once, when it is first used."""

    config: Config
    dataset: Dataset
    recorded: Facts | None = None  # of a run that has begun

    @cached_property
    def facts(self) -> Facts:
        """What the run has recorded, or is measured now.

        Raises UserError where config, data set and network do not fit.
        """
        if self.recorded is None:
            return find_facts(
                self.config,
                self.dataset,
                model=self.model,
                task=self.task,
                draws=self.draws,
                views=self.views,
                num_devices=self.parallel.num_devices,
            )
        if self.recorded.train_draws:
            return self.recorded
        return dataclasses.replace(self.recorded, **count_classes(self.draws))  # of an old version

    @cached_property
    def parallel(self):
        """How calls are compiled and arrays placed."""
        return make_parallel(self.config.parallel)

    @cached_property
    def task(self) -> Task:
        """Losses, metrics, predictions and their pictures."""
        seen = count_classes(self.draws)
        setting = make_setting(self.dataset.class_names, self.dataset.image_shape, **seen)
        return make_task(self.config, setting)

    @cached_property
    def model(self) -> nn.Module:
        """The network."""
        return make_model(self.config, self.task, self.parallel.axis_name)

    @cached_property
    def draws(self) -> Draws:
        """How often an epoch shows each class."""
        return find_draws(self.config, self.dataset)

    @cached_property
    def views(self) -> list[View]:
        """Over which the final test averages."""
        return read_views(self.config.data.views, self.dataset.image_shape)

    @cached_property
    def plan(self) -> TrainPlan:
        """Which examples each call of the run sees."""
        return TrainPlan(
            draws=self.draws,
            batch_size=self.config.data.batch_size,
            steps_per_call=self.facts.steps_per_call,
            epochs=self.config.epochs + sum(self.facts.extended),
            seed=self.config.seed,
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
        shape = self.dataset.image_shape
        return make_run_optimizer(self.config, self.model, shape, self.schedule)

    @cached_property
    def freeze(self) -> Freeze:
        """What stays as it is."""
        return make_freeze(self.config)

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
        initialize = getattr(self.model, "initialize_from", None)
        if initialize is not None:
            train = self.dataset.splits["train"]
            images, _ = train.load(np.arange(min(len(train), _INITIAL_IMAGES)))
            images = self.preprocess(jnp.asarray(images))
            initialize = functools.partial(initialize, images=images)
        shape = self.facts.image_shape
        return make_run_state(self.config, self.model, self.tx, shape, initialize)

    def abstract_state(self) -> TrainState:
        """Shapes and types of the state."""
        # The parts are made out here: what is cached must not hold values of a trace.
        parts = self.config, self.model, self.tx, self.facts.image_shape
        return jax.eval_shape(lambda: make_run_state(*parts))

    def feeder(self, split: Split) -> Resident | Streaming:
        """The split on the device, or streamed where it was too large to be kept in memory."""
        data = self.config.data
        in_memory = isinstance(split, ArraySplit)
        if data.feeder == "resident" or (data.feeder == "auto" and in_memory):
            return Resident(split)
        return Streaming(split, self.config.run.workers)

    def stage_at(self, step: int) -> int:
        """The epoch since which training images have had the size that they have at `step`."""
        epoch = step // self.plan.steps_per_epoch
        return max(first for first in find_stages(self.config.data.augment) if first <= epoch)

    def train_call(self, feeder: Resident | Streaming, epoch: int | None = None):
        """Compiled: (state, arrays, items, lr_scale) -> (state, metrics).

        Images have the size that they have in `epoch`; the last one unless it is given.
        """
        step = TrainStep(
            self.model,
            self.task,
            self.tx,
            self.preprocess,
            augment=self._make_augment(epoch),
            freeze=self.freeze,
            accumulate=self.config.optimizer.accumulate,
            ema_decay=self.config.optimizer.ema_decay,
            lookahead=self.lookahead,
            axis_name=self.parallel.axis_name,
        )
        return self.parallel.compile_train(make_train_call(step, feeder.batch))

    def _make_augment(self, epoch: int | None) -> Augment | None:
        data, shape = self.config.data, self.facts.image_shape
        if not data.augment:
            return None
        policy = data.augment if epoch is None else policy_at(data.augment, epoch)
        classes = augment_labels(self.config, self.facts.class_names)
        steps, axis = self.plan.steps_per_epoch, self.parallel.axis_name
        return make_augment(policy, shape, steps, axis, classes=classes)

    def evaluator(self, split: Split, views: Sequence[View] = ()) -> Evaluator:
        """Exact evaluation on `split`."""
        batch, calls = self.config.data.eval_batch_size, self.facts.steps_per_call
        return Evaluator(
            self.model,
            self.task,
            self.preprocess,
            self.parallel,
            self.feeder(split),
            EvalPlan(len(split), batch, calls),
            views,
        )


def make_experiment(config: Config, workdir: Workdir) -> Experiment:
    """The run of `workdir`: its facts are found on the first start and read on later ones.

    Everything the config can get wrong has been tried before the first file is written.
    """
    # A path outlives the folder that a command runs in.
    data = dataclasses.replace(config.data, source=absolute_source(config.data.source))
    written = to_dict(dataclasses.replace(config, data=data))
    if workdir.has("run"):
        facts = Facts.read(workdir)
        dataset = reload_data(config, facts, workdir)
        if workdir.read("config") != written:  # the same files in another place, another `run.*`
            workdir.write("config", written)
        return Experiment(config, dataset, facts)
    # The optimizer's mistakes are reported before a large set is read; any epoch length will do.
    schedule = make_schedule(config.optimizer, 1000, config.epochs)
    make_optimizer(config.optimizer, schedule)
    make_lookahead(config.optimizer, 1000 * config.epochs)
    dataset = load_data(config)
    experiment = Experiment(config, dataset)
    _ = experiment.plan  # refuses a batch larger than the split
    workdir.write("config", written)
    if dataset.files:
        workdir.write("splits", dict(dataset.files))
    else:  # that of a start which ended before it wrote run.json
        (workdir.path / "splits.json").unlink(missing_ok=True)
    workdir.write("run", dataclasses.asdict(experiment.facts))
    return experiment
