"""`flaxcnn visualize signals`: values and gradients of every layer, at the start and later."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxcnn.analysis.signals import Signals, draw_signals, signals
from flaxcnn.commands.visualize import check_folder, save
from flaxcnn.errors import UserError
from flaxcnn.exit_status import DONE
from flaxcnn.models import create_model, init, variant
from flaxcnn.training.checkpoint import SavedCheckpoints
from flaxcnn.training.experiment import Experiment
from flaxcnn.training.facts import Facts, reload_data
from flaxcnn.training.parts import find_monitor
from flaxcnn.training.stages import find_run
from flaxcnn.training.workdir import Workdir


def run(args: argparse.Namespace) -> int:
    """Draws one picture and prints its name."""
    check_folder(args.out)
    if args.images < 2:
        raise UserError(f"--images {args.images}: deviations need at least 2")
    measured: dict[str, Signals] = {}
    for network in args.networks:
        if Path(network).is_dir():
            prefix = f"{Path(network).name}, " if len(args.networks) > 1 else ""
            measured |= {f"{prefix}step {n}": x for n, x in _of_run(network, args.images)}
        else:
            measured[network] = _of_network(network, args.images)
    save(draw_signals(measured), args.out)
    return DONE


def _of_network(name: str, count: int) -> Signals:
    """Those a network starts with, seed 0, for images of white noise and random classes."""
    shape, model = variant(name).input_shape, create_model(name)
    draw = np.random.default_rng(0)
    images = draw.standard_normal((count, *shape), np.float32)
    classes: Any = getattr(model, "num_classes", 1)
    labels = draw.integers(0, max(2, classes), count)
    return signals(model, init(model, jax.random.key(0), shape), images, labels)


def _of_run(path: str, count: int) -> Iterator[tuple[int, Signals]]:
    """Those of a run's start and of each saved checkpoint, for its first training images."""
    workdir = Workdir(find_run(path))
    config, facts = workdir.config(), Facts.read(workdir)
    if config.task.name != "classification":
        raise UserError(f"{path}: signals are of classification, and this is {config.task.name}")
    dataset = reload_data(config, facts, workdir)
    experiment = Experiment(config, dataset, facts, workdir.path)
    train = dataset.splits["train"]
    pixels, labels = train.load(np.arange(min(count, len(train))))
    images = experiment.preprocess(jnp.asarray(pixels))
    model = experiment.model.clone(axis_name=None)
    yield 0, signals(model, experiment.initial_state().variables, images, labels)
    abstract = experiment.abstract_state()
    checkpoints = SavedCheckpoints(workdir.checkpoints, find_monitor(config))
    for step in checkpoints.steps:
        state, _ = checkpoints.restore(step, abstract)
        yield step, signals(model, state.variables, images, labels)
