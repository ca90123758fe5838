"""The command `flaxcnn export`: a run's network in another format, by the suffix of the file."""

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from flaxcnn.data.augment import read_views, viewed_shape
from flaxcnn.errors import UserError
from flaxcnn.exit_status import DONE
from flaxcnn.export import (
    Page,
    Sample,
    export_html,
    export_keras,
    export_onnx,
    export_safetensors,
    export_stablehlo,
)
from flaxcnn.tasks.classification import Classification
from flaxcnn.training.facts import reload_data
from flaxcnn.training.inference import TrainedRun, load_run
from flaxcnn.training.publish import list_arguments

_SAMPLES, _AMONG = 12, 200  # images that a page offers, of different classes, among the first
_SAMPLE_PIXELS = 64 * 64  # of larger images the page would hold more than of weights


def run(args: argparse.Namespace) -> int:
    """Writes the file. Raises UserError for what cannot be exported; nothing is written then."""
    out = Path(args.out)
    if out.suffix.lower() not in WRITERS:
        raise UserError(f"{out}: a network is exported to {', '.join(WRITERS)} only, by the suffix")
    write, options = WRITERS[out.suffix.lower()]
    for option in ("weights", "title", "layout"):
        if getattr(args, option) is not None and option not in options:
            raise UserError(f"--{option} is not for {out.suffix} files")
    if not out.parent.is_dir():
        raise UserError(f"{out}: there is no folder {out.parent}")
    trained_run = load_run(args.workdir, args.checkpoint)
    try:
        said = write(out, trained_run, args)
    except OSError as error:
        raise UserError(f"{out}: {error.strerror}") from error
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB, {said}")
    return DONE


def _write_html(out: Path, trained_run: TrainedRun, args: argparse.Namespace) -> str:
    if not isinstance(trained_run.task, Classification):
        task = trained_run.config.task.name
        raise UserError(f"{args.workdir} is a run of {task}: a page shows classes only")
    config, facts = trained_run.config, trained_run.facts
    views = read_views(config.data.views, facts.image_shape)
    shape = viewed_shape(views, facts.image_shape)
    page = Page(
        title=args.title or f"{config.model.name}: {Path(args.workdir).resolve().name}",
        class_names=facts.class_names,
        mean=facts.mean,
        std=facts.std,
        resize=config.data.resize,
        samples=_find_samples(trained_run) if shape == tuple(facts.image_shape) else (),
    )
    model, variables = trained_run.model, trained_run.variables
    weights = export_html(out, model, variables, shape, page, args.weights or "auto")
    return f"{weights} weights"


def _find_samples(trained_run: TrainedRun) -> list[Sample]:
    """Images of the test split, one of a class, if they are small and the data set is there."""
    config, facts = trained_run.config, trained_run.facts
    height, width, _ = facts.image_shape
    if height * width > _SAMPLE_PIXELS:
        return []
    try:
        splits = reload_data(config, facts, trained_run.workdir).splits
    except UserError:  # the page does without
        return []
    split = splits.get("test") or splits.get("validation")
    if split is None:
        return []
    images, labels = split.load(np.arange(min(_AMONG, len(split))))
    classes, first = np.unique(labels, return_index=True)
    chosen = zip(classes[:_SAMPLES], first, strict=False)
    return [Sample(images[index], facts.class_names[label]) for label, index in chosen]


def write_stablehlo(out: Path, trained_run: TrainedRun, args: Any = None) -> str:
    """What `predict` computes of images of the run's size, for jax alone."""
    export_stablehlo(out, trained_run.predictor.function, trained_run.facts.image_shape)
    return _describe(trained_run)


def write_onnx(out: Path, trained_run: TrainedRun, args: Any = None) -> str:
    """The same in float32, for ONNX' runtimes; the classes' names are in its metadata."""
    facts, model = trained_run.facts, trained_run.model
    if getattr(model, "dtype", None) not in (None, jnp.float32):
        trained_run = dataclasses.replace(trained_run, model=model.clone(dtype=jnp.float32))
    function = trained_run.predictor.function
    export_onnx(out, function, facts.image_shape, {"class_names": facts.class_names})
    return _describe(trained_run)


def _describe(trained_run: TrainedRun) -> str:
    shape = ", ".join(map(str, trained_run.facts.image_shape))
    answers = "probabilities" if isinstance(trained_run.task, Classification) else "answers"
    return f"images uint8 [N, {shape}] in, {answers} out"


def write_safetensors(out: Path, trained_run: TrainedRun, args: Any = None) -> str:
    """The weights alone."""
    layout, config = getattr(args, "layout", None) or "flaxcnn", trained_run.config
    arguments, own = list_arguments(trained_run)
    shape = trained_run.facts.image_shape
    export_safetensors(
        out, config.model.name, trained_run.variables, layout, image_shape=shape, **arguments
    )
    return _describe_names(layout, config.model.name, {} if layout == "flaxcnn" else own)


def _write_keras(out: Path, trained_run: TrainedRun, args: argparse.Namespace) -> str:
    name, (arguments, own) = trained_run.config.model.name, list_arguments(trained_run)
    shape = trained_run.facts.image_shape
    export_keras(out, name, trained_run.variables, image_shape=shape, **arguments)
    return _describe_names("keras", name, own)


def _describe_names(layout: str, name: str, own: dict[str, Any]) -> str:
    said = f"{layout}'s names of {name}"
    return f"{said}; its model.kwargs, which are needed there too: {own}" if own else said


# By suffix: what writes the file, and which options it has.
WRITERS: dict[str, tuple[Callable[[Path, TrainedRun, argparse.Namespace], str], set[str]]] = {
    ".html": (_write_html, {"weights", "title"}),
    ".stablehlo": (write_stablehlo, set()),
    ".onnx": (write_onnx, set()),
    ".safetensors": (write_safetensors, {"layout"}),
    ".h5": (_write_keras, set()),
}
