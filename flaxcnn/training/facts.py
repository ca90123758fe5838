"""What a run found out at its start, and what of it must still hold when it is resumed."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxcnn.data.augment import View, augmented_shape, find_stages, policy_at, viewed_shape
from flaxcnn.data.imbalance import Draws
from flaxcnn.data.normalization import find_normalization
from flaxcnn.data.record import refuse
from flaxcnn.data.sources import FOLDERS, Dataset
from flaxcnn.data.splits import knows_strata
from flaxcnn.errors import UserError
from flaxcnn.tasks.task import Setting, Task
from flaxcnn.training.config import Config
from flaxcnn.training.momentum import record_momentum
from flaxcnn.training.parts import (
    augment_labels,
    load_data,
    make_freeze,
    make_run_optimizer,
    make_run_state,
)
from flaxcnn.training.sharding import check_divisible
from flaxcnn.training.start import Start, find_reading
from flaxcnn.training.step import check_takes
from flaxcnn.training.workdir import Workdir
from flaxcnn.weights.preprocessing import Preprocessing

# Multiply-adds per second that a call is planned with, for about half a second of work. Fixed
# numbers and no clock: the steps per call decide the bits of the result.
_PLANNED_RATE = {"cpu": 2e10, "gpu": 2e13, "tpu": 2e13}
_STREAMED_BYTES_PER_CALL = 2**26


@dataclasses.dataclass
class Facts:
    """What a run found out at its start, saved as run.json so that it never changes after.

    `mean` and `std` are per channel, for pixels scaled to 0..1 (`data.normalization`).
    `data_version` tells the data set from another: of a folder the SHA-256 of the names, sizes and
    splits of its files (splits.json has the list), of tfds name and version.
    """

    class_names: list[str]
    image_shape: list[int]  # height, width, channels
    examples: dict[str, int]  # per split
    skipped: int  # damaged images
    mean: list[float]
    std: list[float]
    parameters: int
    steps_per_call: int
    train_images: list[int] = dataclasses.field(default_factory=list)  # per class, see `Draws`;
    train_draws: list[int] = dataclasses.field(default_factory=list)  # [] in runs of old versions
    norm_momentum: float = 0.0  # the largest of BatchNorm that trains; 0 without, in older runs
    data_version: str = ""  # "" in runs of old versions
    extended: list[int] = dataclasses.field(default_factory=list)  # epochs, see `extend.py`
    weights: dict[str, Any] = dataclasses.field(default_factory=dict)  # of `Start`; {} without
    counts: dict[str, list[int]] = dataclasses.field(default_factory=dict)  # `Task.count`

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

    @property
    def start(self) -> Start | None:
        """The weights that the run starts with."""
        return Start.from_dict(self.weights) if self.weights else None

    @property
    def setting(self) -> Setting:
        """What the run's task is made from."""
        return make_setting(
            self.class_names, self.image_shape, self.train_images, self.train_draws, self.counts
        )


def find_facts(
    config: Config,
    dataset: Dataset,
    *,
    model: nn.Module,
    task: Task,
    draws: Draws,
    views: Sequence[View],
    num_devices: int,
    start: Start | None = None,
    counts: dict[str, list[int]] | None = None,
) -> Facts:
    """Measures the training split and the network. Raises UserError where they do not fit."""
    if "validation" not in dataset.splits:
        for field, needed in (
            (f"early_stopping={config.early_stopping}", config.early_stopping > 0),
            ("optimizer.schedule.name=plateau", config.optimizer.schedule.name == "plateau"),
        ):
            if needed:
                raise UserError(f"{field} needs a validation split: set data.validation")
    batch = config.data.batch_size
    check_divisible("data.batch_size", batch, num_devices, config.optimizer.accumulate)
    check_divisible("data.eval_batch_size", config.data.eval_batch_size, num_devices)
    policy = config.data.augment
    sizes = [
        augmented_shape(policy_at(policy, epoch), dataset.image_shape)
        for epoch in find_stages(policy)
    ]
    seen = max(sizes, key=math.prod)
    viewed = viewed_shape(views, dataset.image_shape)
    augment_labels(config, dataset.class_names)
    # That any patterns of parameters match some is known before anything is compiled.
    tx = make_run_optimizer(config, model, dataset.image_shape, lambda step: 0.0)
    with record_momentum() as momenta:
        state = jax.eval_shape(lambda: make_run_state(config, model, tx, dataset.image_shape))
    freeze = make_freeze(config)
    freeze.check(state.params)
    moving = [m for path, m in momenta.items() if not freeze.holds_statistic(path)]
    for field, shape in (*(("data.augment", size) for size in sizes), ("data.views", viewed)):
        if shape != dataset.image_shape:
            check_takes(model, state.variables, shape, field)
    images = jax.ShapeDtypeStruct((1, *seen), jnp.float32)
    forward = jax.jit(lambda variables, x: model.apply(variables, x, train=False))
    traced = forward.trace(state.variables, images)
    task.check(traced.out_info)
    cost = traced.lower(lowering_platforms=("cpu",)).cost_analysis()
    assert cost is not None  # on CPU it is always known
    macs = cost["flops"] / 2
    planned = _plan_steps_per_call(
        macs=3 * batch * macs,  # forward, gradient of the input, gradient of the kernel
        streamed_bytes=batch * int(np.prod(dataset.image_shape)),
        steps_per_epoch=max(1, len(draws) // batch),
    )
    reading = find_reading(config, start)
    how = (reading.mean, reading.std) if reading else config.data.normalization
    mean, std = find_normalization(how, dataset.splits["train"], dataset.image_shape[2])
    return Facts(
        class_names=list(dataset.class_names),
        image_shape=list(dataset.image_shape),
        examples={name: len(split) for name, split in dataset.splits.items()},
        skipped=dataset.skipped,
        mean=mean.tolist(),
        std=std.tolist(),
        parameters=sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(state.params)),
        steps_per_call=config.steps_per_call or planned,
        **count_classes(draws),
        norm_momentum=max(moving, default=0.0),
        data_version=dataset.version,
        weights=start.to_dict() if start else {},
        counts=counts or {},
    )


def make_setting(
    class_names: Sequence[str],
    image_shape: Sequence[int],
    train_images: Sequence[int],
    train_draws: Sequence[int],
    counts: dict[str, list[int]],
) -> Setting:
    """What a task is made from, of facts."""
    height, width, channels = image_shape
    if len(train_images) != len(class_names):  # images of unknown classes are counted together
        train_images = train_draws = ()
    shape = height, width, channels
    return Setting(tuple(class_names), shape, tuple(train_images), tuple(train_draws), counts)


def describe_reading(config: Config, facts: Facts) -> Preprocessing:
    """What a run's images are made into."""
    reading = find_reading(config, facts.start)
    if reading is not None and config.task.name == "classification":
        return reading
    height, width, _ = facts.image_shape
    resize = config.data.resize if config.data.image_size else ""
    mean, std = tuple(facts.mean), tuple(facts.std)
    return Preprocessing((height, width), mean, std, crop=1.0, interpolation="area", resize=resize)


def count_classes(draws: Draws) -> dict[str, Any]:
    """`Facts.train_images` and `Facts.train_draws`."""
    images = np.bincount(draws.labels, minlength=len(draws.per_class))
    return {"train_images": images.tolist(), "train_draws": draws.per_class.tolist()}


def _plan_steps_per_call(macs: float, streamed_bytes: int, steps_per_epoch: int) -> int:
    """Steps for about half a second, in calls of equal length where an epoch allows it."""
    rate = _PLANNED_RATE.get(jax.default_backend(), _PLANNED_RATE["gpu"])
    most = min(rate / 2 / macs, _STREAMED_BYTES_PER_CALL / streamed_bytes, 100)
    calls = -(-steps_per_epoch // max(1, int(most)))
    return -(-steps_per_epoch // calls)


def reload_data(config: Config, facts: Facts, workdir: Workdir) -> Dataset:
    """The data set of the run in `workdir`. Raises UserError if it is not as `facts` have it."""
    source = config.data.source
    kind, _, path = source.partition(":")
    if kind in FOLDERS and not Path(path).expanduser().exists():
        raise UserError(
            f"the run's data set, {source}, is not there; where it has been moved to is said by "
            "data.source to training and by --source to evaluate"
        )
    dataset = load_data(config, workdir.record(), find_reading(config, facts.start))
    changes = []
    if list(dataset.image_shape) != list(facts.image_shape):
        shapes = ["x".join(map(str, shape)) for shape in (dataset.image_shape, facts.image_shape)]
        changes.append(f"images are {shapes[0]}, they were {shapes[1]}")
    for name in facts.examples | dataset.splits:
        before, after = facts.examples.get(name, 0), len(dataset.splits.get(name, ()))
        if before != after:
            changes.append(f"{name} has {after} images, it had {before}")
    train, counted = dataset.splits["train"], facts.train_images
    compared = len(counted) == len(facts.class_names) and knows_strata(train)
    counts = np.bincount(train.strata, minlength=len(counted)) if compared else ()
    for name, before, after in zip(facts.class_names, counted, counts, strict=False):
        if before != after and not changes:
            changes.append(f"train has {after} images of class {name!r}, it had {before}")
    if changes:
        raise refuse(source, changes)
    return dataset
