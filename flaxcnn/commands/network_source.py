"""The network that a command looks into: a run's, a published one, or one that starts."""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from flaxcnn.errors import UserError
from flaxcnn.models import create_model, init, variant
from flaxcnn.training.inference import load_run
from flaxcnn.weights.preprocessing import Preprocessing
from flaxcnn.weights.pretrained import load_variables


class Source(NamedTuple):
    """A network, its variables, and what images are made into for it.

    `class_names` may be empty.
    """

    name: str
    model: nn.Module
    variables: Any
    preprocessing: Preprocessing
    class_names: tuple[str, ...]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the images."""
        return *self.preprocessing.image_size, self.preprocessing.channels

    @property
    def mean(self) -> np.ndarray:
        """Per channel, for pixels in 0..1."""
        return np.array(self.preprocessing.mean, np.float32)

    @property
    def std(self) -> np.ndarray:
        """Per channel, for pixels in 0..1."""
        return np.array(self.preprocessing.std, np.float32)

    def name_class(self, index: int) -> str:
        """The class' name, or its number."""
        return self.class_names[index] if index < len(self.class_names) else f"class {index}"


def open_source(args: argparse.Namespace) -> Source:
    """The network that `--workdir`, or `--model` and `--weights`, say."""
    if (args.workdir is None) == (not args.model and not args.weights):
        raise UserError("give either --workdir RUN or --model NAME, --weights W or both")
    if args.workdir is not None:
        run = load_run(args.workdir, args.checkpoint)
        names = tuple(run.facts.class_names)
        return Source(Path(args.workdir).name, run.model, run.variables, run.preprocessing, names)
    arguments = {"num_classes": args.num_classes} if args.num_classes else {}
    if args.weights:
        variables, located = load_variables(args.weights, args.model or "", **arguments)
        model = create_model(located.model_name, **{**located.kwargs, **arguments})
        return Source(
            located.model_name, model, variables, located.need_preprocessing(), located.class_names
        )
    shape = variant(args.model).input_shape
    model = create_model(args.model, **arguments)
    if args.kind in ("diagram", "receptive_field"):  # of shapes alone: networks of any size
        images = jax.ShapeDtypeStruct((1, *shape), np.float32)
        variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    else:
        variables = init(model, jax.random.key(0), shape)
        print(f"{args.model}: without --weights these are those it starts with, seed 0")
    half = (0.5,) * shape[2]
    return Source(args.model, model, variables, Preprocessing(shape[:2], half, half), ())
