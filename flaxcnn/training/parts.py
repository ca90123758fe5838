"""From a config to its parts: network, task, data set, optimizer's conditions."""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax

from flaxcnn.data.imbalance import Draws, by_label, make_draws, subsample
from flaxcnn.data.record import Record
from flaxcnn.data.sources import Dataset, load_dataset
from flaxcnn.data.splits import knows_strata
from flaxcnn.errors import UserError
from flaxcnn.models._registry import create_model
from flaxcnn.tasks.registry import find_task
from flaxcnn.tasks.task import Metric, Setting, Task
from flaxcnn.training.config import Config, DataConfig, LossConfig
from flaxcnn.training.freeze import Freeze
from flaxcnn.training.loss_scale import scale_loss
from flaxcnn.training.optim import make_optimizer, number_layers
from flaxcnn.training.start import Start
from flaxcnn.training.state import TrainState, make_state
from flaxcnn.weights.preprocessing import Preprocessing


def make_task(config: Config, setting: Setting) -> Task:
    """The config's task on the data set that `setting` describes.

    Raises UserError for a setting that the task does not have.
    """
    kind = find_task(config.task.name)
    if config.task.name == "classification":
        if config.task.kwargs:
            raise UserError("task.kwargs: the settings of classification are the fields of loss")
        return kind.make(setting, **dataclasses.asdict(config.loss))
    if config.loss != LossConfig():
        raise UserError(
            f"loss belongs to classification: the settings of {config.task.name} are task.kwargs"
        )
    try:
        return kind.make(setting, **config.task.kwargs.to_dict())
    except TypeError as error:
        raise UserError(f"task.kwargs of {config.task.name}: {error}") from error


def find_monitor(config: Config) -> Metric:
    """What the best checkpoint and early stopping go by: the config's `monitor`, or the task's."""
    own = find_task(config.task.name).monitor
    return Metric("loss", "min") if config.monitor == "loss" else own


def make_model(
    config: Config, task: Task, axis_name: str | None, start: Start | None = None
) -> nn.Module:
    """The config's network, with the outputs that its task needs unless `model.kwargs` says so.

    And with what the weights that it starts with need.
    """
    kwargs: dict[str, Any] = {
        "num_classes": task.num_outputs(),
        **(start.kwargs if start else {}),
        **config.model.kwargs,
        "dtype": jnp.dtype(config.precision),
        "axis_name": axis_name,
    }
    return create_model(config.model.name, **kwargs)


def make_freeze(config: Config) -> Freeze:
    """What the config's run leaves as it is."""
    return Freeze(config.optimizer.freeze, config.optimizer.rates.to_dict())


def make_run_optimizer(
    config: Config, model: nn.Module, image_shape: Sequence[int], schedule: optax.Schedule
) -> optax.GradientTransformation:
    """The config's update rule; see `make_optimizer`."""
    decays = config.optimizer.layer_decay != 1
    layers = number_layers(model, image_shape) if decays else None
    return add_loss_scale(config, make_optimizer(config.optimizer, schedule, layers))


def add_loss_scale(
    config: Config, tx: optax.GradientTransformation
) -> optax.GradientTransformation:
    """`tx`, with a dynamic loss scale where the config's precision needs one."""
    return scale_loss(tx) if config.precision == "float16" else tx


def make_run_state(
    config: Config,
    model: nn.Module,
    tx: optax.GradientTransformation,
    image_shape: Sequence[int],
    initialize: Callable[[Any], Any] | None = None,
) -> TrainState:
    """The config's run at step 0; see `make_state`."""
    optimizer = config.optimizer
    return make_state(
        model,
        tx,
        image_shape,
        seed=config.seed,
        ema=optimizer.ema_decay > 0,
        lookahead=optimizer.lookahead.every > 0,
        freeze=make_freeze(config),
        masked=bool(optimizer.mask_file),
        shared=optimizer.share,
        initialize=initialize,
    )


def load_data(
    config: Config, record: Record | None = None, reading: Preprocessing | None = None
) -> Dataset:
    """The config's data set, its training split with the share of each class to be kept.

    With the `record` of a run, the set and the splits that the run has recorded; with `reading`,
    images as weights want them (see `find_reading`), whose targets have no place in them.
    """
    data = config.data
    if reading is not None and config.task.name == "classification":
        size, channels, fit = reading.image_size, reading.channels, reading.fit
    else:
        size, channels, fit = data.image_size, data.channels, None
    dataset = load_dataset(
        data.source,
        image_size=size,
        resize=data.resize,
        channels=channels,
        split=data.split,
        validation=data.validation,
        seed=config.seed,
        on_bad_image=data.on_bad_image,
        resident_limit=_resident_limit(data),
        record=record,
        fit=fit,
    )
    shares = data.balance.subsample.to_dict()
    train = subsample(dataset.splits["train"], dataset.class_names, shares, config.seed)
    return dataclasses.replace(dataset, splits=dataset.splits | {"train": train})


def _resident_limit(data: DataConfig) -> int:
    """Bytes of pixels up to which a split is decoded at the start and kept in memory."""
    if data.feeder == "resident":
        return sys.maxsize
    # Digits come decoded.
    return 0 if data.feeder == "streaming" and data.source != "digits" else data.resident_limit


def find_draws(config: Config, dataset: Dataset) -> Draws:
    """How often an epoch shows each class of the training split.

    Where there are no labels, or they would have to be read and nothing goes by them, all images
    count as of one class.
    """
    balance, train = config.data.balance, dataset.splits["train"]
    by_class = balance.sampler != "natural" or balance.expand or config.loss.class_weights != "none"
    if not dataset.labelled or not (by_class or knows_strata(train)):
        return make_draws(np.zeros(len(train), np.int32), ())
    return make_draws(
        train.strata,
        dataset.class_names,
        sampler=balance.sampler,
        repeat_threshold=balance.repeat_threshold,
        expand=balance.expand.to_dict(),
    )


def augment_labels(config: Config, class_names: Sequence[str]) -> list[int]:
    """The labels of `data.augment_classes`. Raises UserError for an unknown class."""
    names = config.data.augment_classes
    return list(by_label("data.augment_classes", class_names, dict.fromkeys(names)))
