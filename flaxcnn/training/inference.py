"""A finished or stopped run, or published weights, as a function of images."""

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax

from flaxcnn.data.augment import read_views, viewed_shape
from flaxcnn.errors import UserError
from flaxcnn.models import create_model
from flaxcnn.tasks.classification import Classification
from flaxcnn.tasks.task import Task
from flaxcnn.training.checkpoint import SavedCheckpoints
from flaxcnn.training.config import Config
from flaxcnn.training.evaluate import Evaluation
from flaxcnn.training.experiment import Experiment
from flaxcnn.training.facts import Facts, describe_reading, reload_data
from flaxcnn.training.parts import (
    find_monitor,
    make_model,
    make_run_optimizer,
    make_run_state,
    make_task,
)
from flaxcnn.training.predictor import Predictor
from flaxcnn.training.stages import find_run
from flaxcnn.training.step import check_takes
from flaxcnn.training.workdir import Workdir
from flaxcnn.weights.preprocessing import Preprocessing
from flaxcnn.weights.pretrained import load_variables


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

    @cached_property
    def predictor(self) -> Predictor:
        """The run as a function of new images, over the config's `data.views` if it has any.

        An image is judged as the run's own test images were, whose figures are in result.json. A
        file is brought to size as the config says; where that gives no size it must have the run's.
        """
        data = self.config.data
        return Predictor(
            self.model,
            self.variables,
            self.preprocessing,
            self.task,
            views=read_views(data.views, self.facts.image_shape),
            batch_size=data.eval_batch_size,
            description=f"{self.workdir.path}, step {self.step}",
        )

    @property
    def preprocessing(self) -> Preprocessing:
        """What the run's own images were made into."""
        return describe_reading(self.config, self.facts)

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

    Of a config with stages it is the last that has begun.
    It changes nothing there, so the run may be training. A damaged checkpoint is reported on
    stderr, and the next best or the one before is taken.
    Raises UserError if there is no run, no checkpoint yet, or none that can be read.
    """
    workdir = Workdir(find_run(path))
    config, facts = workdir.config(), Facts.read(workdir)
    task = make_task(config, facts.setting)
    model = make_model(config, task, None, facts.start)
    rate = config.optimizer.learning_rate
    tx = make_run_optimizer(config, model, facts.image_shape, lambda step: rate)
    abstract = jax.eval_shape(lambda: make_run_state(config, model, tx, facts.image_shape))
    checkpoints = SavedCheckpoints(workdir.checkpoints, find_monitor(config))
    restore = checkpoints.restore_best if checkpoint == "best" else checkpoints.restore_latest
    restored = restore(abstract)
    if restored is None:
        raise UserError(f"{path} has no checkpoint yet")
    step, state, _ = restored
    return TrainedRun(config, facts, step, model, task, state.variables, workdir)


def load(
    source: str | Path,
    model_name: str = "",
    *,
    checkpoint: str = "best",
    preprocessing: Preprocessing | None = None,
    batch_size: int = 0,
) -> Predictor:
    """A run's network, or a published one, as a function of images and image files.

    Args:
      source: the folder of a run, or weights as for `from_pretrained`: "resnet50.a1_in1k",
        "hf://user/repo", a folder with timm's config.json, a file.
      model_name: the network, where a file does not say it; of a run it is not asked.
      checkpoint: of a run: "best" by validation metric, or "last".
      preprocessing: instead of the weights' own.
      batch_size: how many images are computed at a time; 0 for 32, or a run's `eval_batch_size`.

    Raises UserError as `from_pretrained` and `load_run`.
    """
    if Workdir(find_run(source)).has("run"):
        predictor = load_run(source, checkpoint).predictor
        predictor.batch_size = batch_size or predictor.batch_size
        return predictor
    variables, located = load_variables(str(source), model_name)
    preprocessing = preprocessing or located.need_preprocessing()
    count = located.kwargs["num_classes"]
    names = located.class_names or tuple(f"class {i}" for i in range(max(2, count)))
    return Predictor(
        create_model(located.model_name, **located.kwargs),
        variables,
        preprocessing,
        Classification(names),
        batch_size=batch_size or 32,
        description=located.description,
    )
