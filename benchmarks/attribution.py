"""Sanity checks of the attribution methods, on 48 photographs with MobileNetV2's released weights.

    python benchmarks/attribution.py [--attributions FILE.npz] [--json benchmarks/attribution.json]

Beside ../shared. For each method: how many photographs' score falls faster than with tiles in
random order as tiles are covered (deletion), and rises faster as they appear (insertion); the same
against the heatmap itself, moved to a random place (around the edges); and the rank correlation of
its heatmaps with those of the network whose classifier, or whose every parameter, is shuffled
(Adebayo et al. 2018). FILE keeps attributions, which take longest.
"""

import argparse
import json
import sys
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "reference"))

from photographs import WEIGHTS, load_photographs  # noqa: E402

from flaxcnn.analysis.attribution import METHODS, heatmap  # noqa: E402
from flaxcnn.analysis.sanity import (  # noqa: E402
    order_tiles,
    rank_correlation,
    replacement_curve,
    shuffle_parameters,
)
from flaxcnn.models import create_model  # noqa: E402
from flaxcnn.weights import convert, read_tensors  # noqa: E402

NAME, DATA = "mobilenet_v2_1.00_224", ROOT.parent / "shared" / "data"
TILE, STEPS, BATCH, ORDERS = 16, 7, 16, 2  # ORDERS: random ones, whose mean is beaten or not
SHUFFLED_IMAGES = 4
REGIONAL = ("grad_cam", "occlusion")  # whose sign says for or against


def main() -> None:
    """Measures, prints a line per method and writes the JSON file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--attributions", type=Path)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "attribution.json")
    args = parser.parse_args()
    model = create_model(NAME, num_classes=1001)
    tensors = read_tensors(DATA / "weights" / WEIGHTS[NAME].file)
    variables = convert(NAME, tensors, "tflite", num_classes=1001)
    _, images, _ = load_photographs(DATA, NAME)
    predict = jax.jit(lambda x: model.apply(variables, x, train=False).argmax(-1))
    classes = by_batch(predict, images)
    kept = dict(np.load(args.attributions)) if args.attributions else {}
    blurred = np.stack([cv2.GaussianBlur(image, (0, 0), 10) for image in images])

    def area(ranks: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
        return by_batch(
            lambda x, y, c, r: replacement_curve(model, variables, x, y, jnp.asarray(c), r, STEPS),
            first,
            last,
            classes,
            ranks,
        ).mean(1)

    ways = {"deletion": (images, blurred), "insertion": (blurred, images)}
    side = images.shape[1] // TILE
    rng = np.random.RandomState(0)
    orders = [
        np.stack([rng.permutation(side * side).reshape(side, side) for _ in images])
        for _ in range(ORDERS)
    ]
    random = {way: np.mean([area(o, *ends) for o in orders], 0) for way, ends in ways.items()}
    print("random", {way: round(float(areas.mean()), 3) for way, areas in random.items()})
    key = jax.random.key(0)
    others = {
        "classifier shuffled": shuffle_parameters(variables, key, ["classifier"]),
        "all shuffled": shuffle_parameters(variables, key),
    }
    rows = {"random": {way: round(float(areas.mean()), 4) for way, areas in random.items()}}
    for name, method in sorted(METHODS.items(), key=lambda item: item[0] == "deconvolution"):
        explain = by_method(model, method)
        found = kept[name] if name in kept else explain(variables, images, classes)
        maps = heatmap(found, absolute=name not in REGIONAL)
        ranks, row = order_tiles(maps, TILE), {}
        quarter = ranks.shape[1] // 4
        moved = np.stack([np.roll(x, rng.randint(quarter, 3 * quarter, 2), (0, 1)) for x in ranks])
        for way, ends in ways.items():
            areas, sign = area(ranks, *ends), 1 if way == "insertion" else -1
            row[way] = round(float(areas.mean()), 4)
            row[f"{way}, better than random"] = int((sign * areas > sign * random[way]).sum())
            elsewhere = area(moved, *ends)
            row[f"{way}, better than moved"] = int((sign * areas > sign * elsewhere).sum())
        few = slice(SHUFFLED_IMAGES)
        for what, shuffled in others.items():
            theirs = heatmap(
                explain(shuffled, images[few], classes[few]), absolute=name not in REGIONAL
            )
            row[what] = round(float(rank_correlation(maps[few], theirs).mean()), 3)
        rows[name] = row
        print(name, row, flush=True)
        args.json.write_text(json.dumps(describe() | {"methods": rows}, indent=1) + "\n")


def by_method(model, method):
    """A method in batches: (variables, images, classes) -> attributions."""
    return lambda variables, images, classes: by_batch(
        lambda x, c: method(model, variables, x, c), images, classes
    )


def by_batch(function, *arrays: np.ndarray) -> np.ndarray:
    """Applies a function to `BATCH` examples at a time."""
    starts = range(0, len(arrays[0]), BATCH)
    return np.concatenate(
        [np.asarray(function(*(a[i : i + BATCH] for a in arrays))) for i in starts]
    )


def describe() -> dict:
    """What was measured with what."""
    return {
        "jax": jax.__version__,
        "network": NAME,
        "images": "../shared/data/imagenet-samples.tar.gz",
        "tile": TILE,
        "steps": STEPS,
        "random orders": ORDERS,
        "images for shuffled networks": SHUFFLED_IMAGES,
    }


if __name__ == "__main__":
    main()
