"""The network that a command looks into: a run's, or one by name with weights from a file."""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from flaxcnn.data.images import read_image
from flaxcnn.errors import UserError
from flaxcnn.models import create_model, init, variant
from flaxcnn.training.inference import load_run
from flaxcnn.weights import convert, find_layout, read_tensors

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as torchvision's weights


class Source(NamedTuple):
    """A network, its variables, and the images that it takes.

    `mean` and `std` are per channel, for pixels in 0..1; `class_names` may be empty.
    """

    name: str
    model: nn.Module
    variables: Any
    image_shape: tuple[int, int, int]
    mean: np.ndarray
    std: np.ndarray
    class_names: list[str]

    def read(self, file: str) -> np.ndarray:
        """An image file -> uint8 [H, W, C] of `image_shape`, cut to the middle."""
        height, width, channels = self.image_shape
        return read_image(file, (height, width), "crop", channels)

    def normalize(self, images: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W, C] -> what the network takes."""
        scaled = images.astype(np.float32) / 255
        return ((scaled - self.mean) / self.std).astype(np.float32)

    def name_class(self, index: int) -> str:
        """The class' name, or its number."""
        return self.class_names[index] if index < len(self.class_names) else f"class {index}"


def open_source(args: argparse.Namespace) -> Source:
    """The network that `--workdir`, or `--model` with `--weights`, says."""
    if (args.workdir is None) == (args.model is None):
        raise UserError("give either --workdir RUN or --model NAME, whose network is looked into")
    if args.workdir is not None:
        if args.weights:
            raise UserError("--workdir is a run, which has weights: --weights goes with --model")
        run = load_run(args.workdir, args.checkpoint)
        shape: Any = tuple(run.facts.image_shape)
        mean, std = (np.array(x, np.float32) for x in (run.facts.mean, run.facts.std))
        return Source(
            Path(args.workdir).name,
            run.model,
            run.variables,
            shape,
            mean,
            std,
            run.facts.class_names,
        )
    shape = variant(args.model).input_shape
    arguments = {"num_classes": args.num_classes} if args.num_classes else {}
    model = create_model(args.model, **arguments)
    if args.weights:
        tensors = read_tensors(Path(args.weights))
        layout = find_layout(args.model, tensors)
        variables = convert(args.model, tensors, layout, **arguments)
    elif args.kind == "diagram":  # needs shapes alone, also of networks that fill the memory
        images = jax.ShapeDtypeStruct((1, *shape), np.float32)
        variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    else:
        variables = init(model, jax.random.key(0), shape)
        print(f"{args.model}: without --weights these are those it starts with, seed 0")
    grey = (0.5,) * shape[2]
    mean, std = (
        np.array(x, np.float32) for x in ((_MEAN, _STD) if shape[2] == 3 else (grey, grey))
    )
    return Source(
        args.model,
        model,
        variables,
        shape,
        np.array(mean, np.float32),
        np.array(std, np.float32),
        [],
    )
