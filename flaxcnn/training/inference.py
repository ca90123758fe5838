"""A finished or stopped run as a function: its network and the variables of one checkpoint."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from flaxcnn.data.augment import View, read_views, viewed_shape
from flaxcnn.data.images import read_image
from flaxcnn.errors import UserError
from flaxcnn.models import fold_batch_norm
from flaxcnn.tasks.task import Task
from flaxcnn.training.checkpoint import SavedCheckpoints
from flaxcnn.training.config import Config
from flaxcnn.training.evaluate import Evaluation
from flaxcnn.training.experiment import Experiment
from flaxcnn.training.facts import Facts, reload_data
from flaxcnn.training.optim import make_optimizer
from flaxcnn.training.parts import (
    add_loss_scale,
    find_monitor,
    make_model,
    make_run_state,
    make_task,
)
from flaxcnn.training.step import check_takes, make_forward, make_preprocess
from flaxcnn.training.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """The network of a run with the variables saved at `step`."""

    config: Config
    facts: Facts
    step: int
    model: nn.Module
    task: Task
    variables: Any
    workdir: Workdir

    def answer(self, images: np.ndarray) -> Any:
        """uint8 [N, H, W, C] of the run's own shape -> the task's answers, arrays [N, ...].

        Of classification, probabilities float32 [N, classes]. Over the config's `data.views`, if it
        has any: an image is judged as the run's own test images were, whose figures are in
        result.json. BatchNorm is folded, which moves answers by no more than float32's rounding.
        """
        return jax.device_get(self._forward(self._folded[1], images))

    @cached_property
    def _forward(self) -> Callable[[Any, np.ndarray], Any]:
        preprocess = make_preprocess(self.facts.mean, self.facts.std)
        forward = make_forward(self._folded[0], preprocess, self._views)
        return jax.jit(lambda variables, x: self.task.answer(forward(variables, x)))

    @cached_property
    def _folded(self) -> tuple[nn.Module, Any]:
        shape = viewed_shape(self._views, self.facts.image_shape)
        return fold_batch_norm(self.model, self.variables, shape)

    @cached_property
    def _views(self) -> list[View]:
        return read_views(self.config.data.views, self.facts.image_shape)

    def predict(self, files: Sequence[str], resize: str | None = None) -> Iterator[tuple[str, Any]]:
        """Each file with the task's answer, or with the UserError that says what is wrong with it.

        Files are read and computed `data.eval_batch_size` at a time; `resize` as for `read_image`.
        """
        size = min(self.config.data.eval_batch_size, len(files))
        for start in range(0, len(files), size or 1):
            batch = np.zeros((size, *self.facts.image_shape), np.uint8)  # the last one is padded
            chosen, errors = files[start : start + size], {}
            for index, file in enumerate(chosen):
                try:
                    batch[index] = self.read_image(file, resize)
                except UserError as error:
                    errors[index] = error
            answers = self.answer(batch) if len(errors) < len(chosen) else batch
            for index, file in enumerate(chosen):
                one = errors.get(index) or jax.tree.map(lambda x, i=index: x[i], answers)
                yield file, one

    def read_image(self, file: str, resize: str | None = None) -> np.ndarray:
        """An image file -> uint8 [H, W, C] as the run saw its own.

        Without `resize` ("crop", "stretch" or "pad") it is brought to size as the config says;
        where that gives no size it must have the run's. Raises UserError naming the file.
        """
        height, width, channels = self.facts.image_shape
        policy = resize or (self.config.data.resize if self.config.data.image_size else None)
        image = read_image(file, (height, width) if policy else (), policy or "crop", channels)
        if image.shape != (height, width, channels):
            raise UserError(
                f"{file} is {image.shape[1]}x{image.shape[0]} and the run's images are "
                f"{width}x{height}: resize it, or give --resize crop, stretch or pad"
            )
        return image

    def evaluate(
        self,
        split: str,
        *,
        views: Sequence[Sequence[Any]] | None = None,
        image_size: Sequence[int] = (),
        resize: str | None = None,
        source: str | None = None,
    ) -> Evaluation:
        """Exact metrics and per-example predictions on a split of the run's data set.

        `views` are used instead of the config's `data.views`, () for none of them. With
        `image_size` (height, width) images are brought to that size instead of the run's, by
        `resize` or as the config says (Touvron 2019); the normalisation stays the run's. `source`
        is where the run's data set is by now, in the words of `data.source`.
        Raises UserError if the set is no longer what the run was trained on, has no such split, or
        if the network cannot take the size.
        """
        config, shape = self._resized(tuple(image_size), resize)
        field = "data.views" if views is None else "views"
        chosen = read_views(config.data.views if views is None else views, shape, field)
        for name, seen in (("image_size", shape), (field, viewed_shape(chosen, shape))):
            if seen != tuple(self.facts.image_shape):
                check_takes(self.model, self.variables, seen, name)
        if source:
            data = dataclasses.replace(config.data, source=source)
            config = dataclasses.replace(config, data=data)
        facts = dataclasses.replace(self.facts, image_shape=list(shape))
        experiment = Experiment(config, reload_data(config, facts, self.workdir), facts)
        splits = experiment.dataset.splits
        if split not in splits:
            raise UserError(f"{config.data.source} has no {split} split: {', '.join(splits)}")
        variables = experiment.parallel.replicate(self.variables)
        return experiment.evaluator(splits[split], chosen)(variables)

    def _resized(
        self, image_size: tuple[int, ...], resize: str | None
    ) -> tuple[Config, tuple[int, ...]]:
        """The config with images of another size, and their shape (height, width, channels)."""
        data, shape = self.config.data, tuple(self.facts.image_shape)
        if image_size:
            if len(image_size) != 2 or min(image_size) < 1:
                raise UserError(f"image_size must be (height, width), got {image_size}")
            data, shape = dataclasses.replace(data, image_size=image_size), (*image_size, shape[2])
        if resize:
            if not data.image_size:
                raise UserError("resize needs image_size: the run's images have their own size")
            data = dataclasses.replace(data, resize=resize)
        return dataclasses.replace(self.config, data=data), shape


def load_run(path: str | Path, checkpoint: str = "best") -> TrainedRun:
    """The run in folder `path` at its "best" checkpoint (by validation metric) or its "last".

    It changes nothing there, so the run may be training. A damaged checkpoint is reported on
    stderr, and the next best or the one before is taken.
    Raises UserError if there is no run, no checkpoint yet, or none that can be read.
    """
    workdir = Workdir(path)
    config, facts = workdir.config(), Facts.read(workdir)
    task = make_task(config, facts.setting)
    model = make_model(config, task, None)
    tx = make_optimizer(config.optimizer, lambda step: config.optimizer.learning_rate)
    tx = add_loss_scale(config, tx)
    abstract = jax.eval_shape(lambda: make_run_state(config, model, tx, facts.image_shape))
    checkpoints = SavedCheckpoints(workdir.checkpoints, find_monitor(config))
    restore = checkpoints.restore_best if checkpoint == "best" else checkpoints.restore_latest
    restored = restore(abstract)
    if restored is None:
        raise UserError(f"{path} has no checkpoint yet")
    step, state, _ = restored
    return TrainedRun(config, facts, step, model, task, state.variables, workdir)
