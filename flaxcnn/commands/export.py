"""The command `flaxcnn export`: a run's network in another format, by the suffix of the file."""

import argparse
from pathlib import Path

import numpy as np

from flaxcnn.data.augment import read_views, viewed_shape
from flaxcnn.errors import UserError
from flaxcnn.exit_status import DONE
from flaxcnn.export import Page, Sample, export_html
from flaxcnn.tasks.classification import Classification
from flaxcnn.training.facts import reload_data
from flaxcnn.training.inference import TrainedRun, load_run

SUFFIXES = (".html",)
_SAMPLES, _AMONG = 12, 200  # images that a page offers, of different classes, among the first
_SAMPLE_PIXELS = 64 * 64  # of larger images the page would hold more than of weights


def run(args: argparse.Namespace) -> int:
    """Writes the file. Raises UserError for what cannot be exported; nothing is written then."""
    out = Path(args.out)
    if out.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"{out}: a network is exported to {', '.join(SUFFIXES)} only, by the suffix"
        )
    if not out.parent.is_dir():
        raise UserError(f"{out}: there is no folder {out.parent}")
    trained_run = load_run(args.workdir, args.checkpoint)
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
    try:
        weights = export_html(
            out, trained_run.model, trained_run.variables, shape, page, args.weights
        )
    except OSError as error:
        raise UserError(f"{out}: {error.strerror}") from error
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB, {weights} weights")
    return DONE


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
