"""Non-maximum suppression against torchvision's, on CPU, side by side in one process.

    python benchmarks/nms.py [--rounds 5]

Needs torch and torchvision with its C++ operators beside flaxcnn. Both sides keep the same boxes,
which is checked. Times are CPU-seconds of the process (all threads), the median over rounds in
which the sides take turns, compilation not counted.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
from torchvision.ops.boxes import _batched_nms_vanilla

from flaxcnn.boxes import detect, nms

IMAGES, BOXES, CLASSES, THRESHOLD, KEPT = 8, 1000, 80, 0.5, 100


def draw_boxes(rng: np.random.Generator, clustered: bool) -> np.ndarray:
    """Boxes in an image of 512 pixels: 50 around each of 20 objects, or anywhere."""
    centers = rng.uniform(0, 512, (IMAGES, BOXES, 2))
    sides = np.exp(rng.uniform(np.log(16), np.log(256), (IMAGES, BOXES, 2)))
    if clustered:
        of = rng.integers(0, 20, (IMAGES, BOXES))[..., None]
        centers = np.take_along_axis(centers[:, :20], of, 1) + rng.normal(0, 8, centers.shape)
        sides = np.take_along_axis(sides[:, :20], of, 1) * np.exp(rng.normal(0, 0.2, sides.shape))
    return np.concatenate([centers - sides / 2, centers + sides / 2], -1).astype(np.float32)


def theirs_all(boxes: torch.Tensor, scores: torch.Tensor, least: float) -> list[list[int]]:
    """As torchvision's detectors: what is above a score, suppressed class by class."""
    picks = []
    for image, of_image in zip(boxes, scores, strict=True):
        index = torch.where(of_image.reshape(-1) > least)[0]
        box, label = index // CLASSES, index % CLASSES
        kept = _batched_nms_vanilla(image[box], of_image.reshape(-1)[index], label, THRESHOLD)
        picks.append(index[kept[:KEPT]].tolist())
    return picks


def theirs_labelled(
    boxes: torch.Tensor, scores: torch.Tensor, labels: torch.Tensor
) -> list[list[int]]:
    """One class for each box."""
    given = zip(boxes, scores, labels, strict=True)
    return [_batched_nms_vanilla(*one, THRESHOLD).tolist() for one in given]


def cases(clustered: bool) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """By name, what both sides do."""
    rng = np.random.default_rng(0)
    boxes = draw_boxes(rng, clustered)
    scores = 1 / (1 + np.exp(4 - 2 * rng.normal(size=(IMAGES, BOXES, CLASSES))))
    scores = scores.astype(np.float32)
    labels, best = scores.argmax(-1).astype(np.int32), scores.max(-1)
    torch_boxes, torch_scores = torch.tensor(boxes), torch.tensor(scores)
    torch_best, torch_labels = torch.tensor(best), torch.tensor(labels)
    found = {}
    for least in (-1.0, 0.05):
        ours = jax.jit(
            jax.vmap(
                lambda b, s, least=least: detect(
                    b, s, iou_threshold=THRESHOLD, score_threshold=least, max_outputs=KEPT
                )
            )
        )
        found[f"all 80 scores of a box above {least}"] = (
            lambda ours=ours: jax.block_until_ready(ours(boxes, scores)),
            lambda least=least: theirs_all(torch_boxes, torch_scores, least),
        )
    for kept in (BOXES, KEPT):
        ours = jax.jit(jax.vmap(lambda b, s, c, kept=kept: nms(b, s, THRESHOLD, kept, labels=c)))
        found[f"the best class of a box, {kept} kept"] = (
            lambda ours=ours: jax.block_until_ready(ours(boxes, best, labels)),
            lambda: theirs_labelled(torch_boxes, torch_best, torch_labels),
        )
    return found


def check(ours: Any, theirs: list[list[int]]) -> None:
    """The same scores in the same order; random ones are all different."""
    for i, picks in enumerate(theirs):
        assert int(ours.valid[i].sum()) == min(len(picks), len(ours.valid[i]))
    if hasattr(ours, "indices"):
        for i, picks in enumerate(theirs):
            count = int(ours.valid[i].sum())
            assert ours.indices[i, :count].tolist() == picks[:count]
    else:
        for i, picks in enumerate(theirs):
            count = int(ours.valid[i].sum())
            assert ours.labels[i, :count].tolist() == [p % CLASSES for p in picks[:count]]


def spend(work: Callable[[], Any]) -> float:
    """CPU-seconds of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    """Prints a row for each case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    print(f"{IMAGES} images x {BOXES} boxes x {CLASSES} classes; CPU milliseconds")
    print(f"{'boxes':<10} {'scores':<34} {'flaxcnn':>8} {'torchvision':>11} {'ratio':>6}")
    for clustered in (True, False):
        for name, (ours, theirs) in cases(clustered).items():
            check(ours(), theirs())
            times = [(spend(ours), spend(theirs)) for _ in range(rounds)]
            mine, other = (1000 * statistics.median(t) for t in zip(*times, strict=True))
            kind = "clustered" if clustered else "anywhere"
            ratio = statistics.median(a / b for a, b in times)
            print(f"{kind:<10} {name:<34} {mine:8.1f} {other:11.1f} {ratio:6.2f}", flush=True)


if __name__ == "__main__":
    main()
