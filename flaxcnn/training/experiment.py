"""A run's parts put together: state, plan, optimizer, compiled calls."""

import dataclasses
import functools
import sys
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
    find_stages,
    make_augment,
    policy_at,
    read_views,
)
from flaxcnn.data.feeders import Resident, Streaming
from flaxcnn.data.imbalance import Draws
from flaxcnn.data.plans import EvalPlan, TrainPlan
from flaxcnn.data.sources import Dataset
from flaxcnn.data.splits import ArraySplit, Split
from flaxcnn.errors import UserError
from flaxcnn.tasks.registry import find_task
from flaxcnn.tasks.task import Task
from flaxcnn.training.config import Config
from flaxcnn.training.config_json import to_dict
from flaxcnn.training.evaluate import Evaluator
from flaxcnn.training.facts import (
    Facts,
    count_classes,
    describe_reading,
    find_facts,
    make_setting,
    reload_data,
)
from flaxcnn.training.features import Features
from flaxcnn.training.freeze import Freeze
from flaxcnn.training.masks import hold, read_masks
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
from flaxcnn.training.stages import Stage
from flaxcnn.training.start import Match, Source, Start, find_reading, match_variables
from flaxcnn.training.state import TrainState
from flaxcnn.training.step import TrainStep, make_preprocess, make_train_call
from flaxcnn.training.weights_spec import parse_spec
from flaxcnn.training.workdir import Workdir, absolute

_INITIAL_IMAGES = 5000  # that a network with `initialize_from` sees (Jordan 2024, section 3.2)


@dataclasses.dataclass
class Experiment:
    """A config and its data set; every part is made once, when it is first used."""

    config: Config
    dataset: Dataset
    recorded: Facts | None = None  # of a run that has begun
    folder: Path | None = None  # of the run; `previous:` in `model.weights` is about what is beside
    # What is seen instead of images, see `use_features`; a copy of the experiment sees images.
    features: Features | None = dataclasses.field(default=None, init=False)

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
                start=self.start,
                counts=self._counts,
            )
        if self.recorded.train_draws:
            return self.recorded
        return dataclasses.replace(self.recorded, **count_classes(self.draws))  # of an old version

    @cached_property
    def source(self) -> Source | None:
        """The weights that the run starts with, to be loaded."""
        return Source(self.config, self.folder) if self.config.model.weights else None

    @cached_property
    def start(self) -> Start | None:
        """What is known of them."""
        if self.recorded is not None:
            return self.recorded.start
        return self.source.start if self.source else None

    @cached_property
    def parallel(self):
        """How calls are compiled and arrays placed."""
        return make_parallel(self.config.parallel)

    @cached_property
    def task(self) -> Task:
        """Losses, metrics, predictions and their pictures."""
        seen = count_classes(self.draws)
        shape, counts = self.dataset.image_shape, self._counts
        setting = make_setting(self.dataset.class_names, shape, **seen, counts=counts)
        return make_task(self.config, setting)

    @cached_property
    def _counts(self) -> dict[str, list[int]]:
        if self.recorded is not None:
            return self.recorded.counts
        kind, dataset = find_task(self.config.task.name), self.dataset
        if not (dataset.labelled or kind.places):
            raise UserError(
                f"task.name: {self.config.task.name} needs labels, and {dataset.name} has targets "
                "with places in the image: set task.name, as segmentation for masks"
            )
        return kind.count(dataset.splits["train"], len(dataset.class_names))

    @cached_property
    def model(self) -> nn.Module:
        """The network."""
        return make_model(self.config, self.task, self.parallel.axis_name, self.start)

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
        if self.start is not None and not parse_spec(self.config.model.weights).partial:
            return []  # averages start with those of the weights
        updates = self.plan.total_steps * self.config.optimizer.accumulate
        found = judge_momentum(self.facts.norm_momentum, updates, self.model)
        return [found] if found else []

    def initial_state(self) -> TrainState:
        """The run at step 0, a function of the config and the training split's first images."""
        initialize = getattr(self.model, "initialize_from", None)
        if self.source is not None:
            initialize = self._take_weights
        elif initialize is not None:
            train = self.dataset.splits["train"]
            images, _ = train.load(np.arange(min(len(train), _INITIAL_IMAGES)))
            images = self.preprocess(jnp.asarray(images))
            initialize = functools.partial(initialize, images=images)
        shape = self.facts.image_shape
        state = make_run_state(self.config, self.model, self.tx, shape, initialize)
        return hold(state, self.read_masks())

    def read_masks(self) -> dict[str, np.ndarray]:
        """What `optimizer.mask_file` holds, none without it. Raises UserError if it is wrong."""
        file = self.config.optimizer.mask_file
        return read_masks(file, self.abstract_state().params) if file else {}

    def _take_weights(self, variables: Any) -> Any:
        """The network's first variables with those of `model.weights`; what is new is said."""
        assert self.source is not None and self.start is not None
        if self.source.start.sha256 != self.start.sha256:
            raise UserError(
                f"model.weights: {self.start.source} is not what the run has started with"
            )
        theirs = self.source.load(self.facts.image_shape[2])
        match = self.match_weights(variables, theirs)
        names = self.facts.class_names
        line = match.describe(self.config.model.name, self.source.start, names)
        print(line, file=sys.stderr)
        del self.__dict__["source"]  # and with it its arrays
        return match.apply(variables, theirs)

    def match_weights(self, variables: Any, theirs: Any) -> Match:
        """What of the network's variables is taken of `theirs`; both may be shapes.

        Raises UserError where they do not fit.
        """
        assert self.start is not None
        partial = parse_spec(self.config.model.weights).partial
        shape = self.dataset.image_shape
        return match_variables(self.model, shape, variables, theirs, self.start.source, partial)

    def abstract_state(self) -> TrainState:
        """Shapes and types of the state."""
        # The parts are made out here: what is cached must not hold values of a trace.
        parts = self.config, self.model, self.tx, self.facts.image_shape
        return jax.eval_shape(lambda: make_run_state(*parts))

    def use_features(self, variables: Any) -> None:
        """From here on the base's features are seen instead of images, with `data.cache_features`.

        `variables` are those of any step of the run.
        """
        if not self.config.data.cache_features or self.features is not None:
            return
        facts, model = self.facts, self.config.model
        described = {
            "model": [model.name, to_dict(self.config)["model"]["kwargs"]],
            "normalization": [facts.mean, facts.std],
            "precision": self.config.precision,
        }
        self.features = Features(
            self.model, variables, self.freeze, self.preprocess, facts.image_shape, described
        )

    @property
    def _seen(self) -> tuple[Any, Callable[[jax.Array], jax.Array]]:
        """The network of what a feeder brings, and what happens to that before."""
        if self.features is None:
            return self.model, self.preprocess
        return self.features, lambda features: features

    def feeder(self, split: Split) -> Resident | Streaming:
        """The split on the device, or streamed where it was too large to be kept in memory."""
        data = self.config.data
        if self.features is not None:
            names = {id(of): name for name, of in self.dataset.splits.items()}
            split = self.features.of(split, names.get(id(split), ""))
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
        model, preprocess = self._seen
        step = TrainStep(
            model,
            self.task,
            self.tx,
            preprocess,
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
        return make_augment(
            policy, shape, steps, axis, classes=classes, least_share=data.least_share
        )

    def evaluator(self, split: Split, views: Sequence[View] = ()) -> Evaluator:
        """Exact evaluation on `split`."""
        batch, calls = self.config.data.eval_batch_size, self.facts.steps_per_call
        model, preprocess = self._seen
        return Evaluator(
            model,
            self.task,
            preprocess,
            self.parallel,
            self.feeder(split),
            EvalPlan(len(split), batch, calls),
            views,
        )


def open_experiment(config: Config, folder: Path | None = None) -> Experiment:
    """A run that is to begin in `folder`: its weights are found and its data is loaded."""
    source = Source(config, folder) if config.model.weights else None
    reading = find_reading(config, source.start if source else None)
    experiment = Experiment(config, load_data(config, reading=reading), folder=folder)
    experiment.source = source
    return experiment


def check_stages(stages: Sequence[Stage], folder: Path) -> Experiment:
    """Tries what each stage of a run in `folder` can get wrong; gives what the first is made of.

    Weights that a stage has from the one before are taken to be like its network. Raises UserError
    naming the stage.
    """
    opened: list[Experiment] = []
    for stage in stages:
        try:
            opened.append(_open_stage(stage, folder, opened[-1] if opened else None))
        except UserError as error:
            raise UserError(f"stage {stage.name!r}: {error}") from None
    return opened[0]


def _open_stage(stage: Stage, folder: Path, before: Experiment | None) -> Experiment:
    config = stage.config
    if before is None or not stage.previous:
        experiment = open_experiment(config, folder / stage.name)
    else:
        other = config.model.name != before.config.model.name
        start = Start(
            f"the stage {stage.previous}",
            preprocessing=describe_reading(before.config, before.facts),
            class_names=tuple(before.facts.class_names),
            kwargs=before.start.kwargs if before.start and not other else {},
        )
        dataset = before.dataset
        if (config.data, config.seed) != (before.config.data, before.config.seed):
            dataset = load_data(config, reading=find_reading(config, start))
        experiment = Experiment(config, dataset, folder=folder / stage.name)
        experiment.start = start
        ours, theirs = (of.abstract_state().variables for of in (experiment, before))
        if parse_spec(config.model.weights).into:
            model: Any = experiment.model
            theirs = model.adopt(theirs)
        experiment.match_weights(ours, theirs)
    _ = experiment.plan, experiment.schedule, experiment.lookahead
    return experiment


def make_experiment(
    config: Config, workdir: Workdir, opened: Experiment | None = None
) -> Experiment:
    """The run of `workdir`: its facts are found on the first start and read on later ones.

    `opened` is what `open_experiment` gives for it, if that has been done.
    Everything the config can get wrong has been tried before the first file is written.
    """
    # A path outlives the folder that a command runs in.
    written = to_dict(absolute(config))
    if workdir.has("run"):
        facts = Facts.read(workdir)
        dataset = reload_data(config, facts, workdir)
        if workdir.read("config") != written:  # the same files in another place, another `run.*`
            workdir.write("config", written)
        return Experiment(config, dataset, facts, workdir.path)
    # The optimizer's mistakes are reported before a large set is read; any epoch length will do.
    schedule = make_schedule(config.optimizer, 1000, config.epochs)
    make_optimizer(config.optimizer, schedule)
    make_lookahead(config.optimizer, 1000 * config.epochs)
    experiment = opened or open_experiment(config, workdir.path)
    dataset = experiment.dataset
    _ = experiment.plan  # refuses a batch larger than the split
    if experiment.source is not None:  # wrong weights are reported before anything is compiled
        theirs = experiment.source.load(experiment.facts.image_shape[2])
        experiment.match_weights(experiment.abstract_state().variables, theirs)
    experiment.read_masks()
    workdir.write("config", written)
    if dataset.files:
        workdir.write("splits", dict(dataset.files))
    else:  # that of a start which ended before it wrote run.json
        (workdir.path / "splits.json").unlink(missing_ok=True)
    workdir.write("run", dataclasses.asdict(experiment.facts))
    return experiment
