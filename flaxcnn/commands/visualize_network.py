"""`flaxcnn visualize KIND` of a network: filters, features, attributions, ... and its diagram."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from flaxcnn.analysis.activations import activations, first_filters, layer_shapes
from flaxcnn.analysis.attribution import METHODS
from flaxcnn.analysis.deconvnet import find_patches
from flaxcnn.analysis.diagram import draw_diagram, select_layers
from flaxcnn.analysis.field_plot import draw_field
from flaxcnn.analysis.maximization import maximize_activation
from flaxcnn.analysis.plots import (
    draw_attributions,
    draw_features,
    draw_filters,
    draw_patches,
    draw_samples,
    to_pixels,
)
from flaxcnn.analysis.summary import summary
from flaxcnn.commands.network_source import Source, open_source
from flaxcnn.commands.visualize import check_folder, save
from flaxcnn.errors import UserError
from flaxcnn.exit_status import DONE


def run(args: argparse.Namespace) -> int:
    """Draws one picture and prints its name."""
    check_folder(args.out)
    source = open_source(args)
    if args.kind == "diagram":
        layers = layer_shapes(source.model, source.variables, source.image_shape)
        text = draw_diagram(select_layers(layers, source.image_shape), source.name)
        _write(text, args.out)
        return DONE
    kinds: dict[str, Callable[[Source, argparse.Namespace], Any]] = {
        "filters": _filters,
        "features": _features,
        "deconv": _deconv,
        "maximize": _maximize,
        "receptive_field": _receptive_field,
    }
    save(kinds.get(args.kind, _attribution)(source, args), args.out)
    return DONE


def _receptive_field(source: Source, args: argparse.Namespace) -> Any:
    return draw_field(summary(source.model, source.image_shape))


def _filters(source: Source, args: argparse.Namespace) -> Any:
    name, kernel = first_filters(source.model, source.variables, source.image_shape)
    return draw_filters(kernel, title=f"{source.name}: {name}, {_times(kernel.shape)}")


def _features(source: Source, args: argparse.Namespace) -> Any:
    pixels = _read(source, args)
    if len(pixels) > 1:
        raise UserError(f"features are of one image, and {len(pixels)} are given")
    found = activations(source.model, source.variables, source.preprocessing(pixels), [args.layer])
    if len(found) > 1:
        raise UserError(f"--layer {args.layer} means several: {', '.join(list(found)[:5])}")
    ((name, maps),) = found.items()
    if maps.ndim != 4:
        raise UserError(f"{name} has no maps: its output is {_times(maps.shape[1:])}")
    title = f"{name}: {_times(maps.shape[1:])}"
    return draw_features(np.asarray(maps[0]), args.count, title, pixels[0])


def _deconv(source: Source, args: argparse.Namespace) -> Any:
    images = source.preprocessing(_read(source, args))
    units = _units(args)
    found = [
        find_patches(source.model, source.variables, images, args.layer, unit, min(9, len(images)))
        for unit in units
    ]
    titles = [f"{args.layer}, unit {unit}" for unit in units]
    return draw_patches(found, source.mean, source.std, titles)


def _attribution(source: Source, args: argparse.Namespace) -> Any:
    pixels = _read(source, args)
    images = source.preprocessing(pixels)
    names = list(METHODS) if args.kind == "attribution" else [args.kind]
    scores = activations(source.model, source.variables, images, ["output"])["output"]
    if args.class_index is None:
        classes = np.asarray(scores).argmax(-1)
    else:
        classes = np.full(len(images), args.class_index)
    options = {"grad_cam": {"layer": args.layer}} if args.kind == "grad_cam" else {}
    found = {
        name: np.asarray(
            METHODS[name](source.model, source.variables, images, classes, **options.get(name, {}))
        )
        for name in names
    }
    return draw_attributions(pixels, found, [source.name_class(int(i)) for i in classes])


def _maximize(source: Source, args: argparse.Namespace) -> Any:
    low, high = ((x - source.mean) / source.std for x in (0.0, 1.0))
    units = _units(args)
    images = [
        maximize_activation(
            source.model,
            source.variables,
            args.layer,
            unit,
            source.image_shape,
            low=low,
            high=high,
            steps=args.steps,
        )[0]
        for unit in units
    ]
    named = args.layer in ("output", "classifier")
    titles = [source.name_class(unit) if named else f"{args.layer}, unit {unit}" for unit in units]
    return draw_samples([to_pixels(x, source.mean, source.std) for x in images], titles, 4)


def _read(source: Source, args: argparse.Namespace) -> np.ndarray:
    return np.stack([source.preprocessing.read(file) for file in args.images])


def _units(args: argparse.Namespace) -> list[int]:
    try:
        return [int(unit) for unit in args.units.split(",")]
    except ValueError:
        raise UserError(f"--units {args.units}: numbers are needed, with commas") from None


def _times(shape: Any) -> str:
    return "x".join(map(str, shape))


def _write(text: str, out: str) -> None:
    """Writes text, whole or not at all, and prints the file's name."""
    unfinished = Path(out).with_name(f".{Path(out).name}.unfinished")
    try:
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, out)
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}") from error
    print(out)
