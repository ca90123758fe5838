"""Networks of torchvision and timm, built with the CPU build of torch."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch


def define_missing_operators() -> None:
    """Declares torchvision's compiled operators, which its import needs and no classifier calls."""
    if _KEPT:
        return
    library = torch.library.Library("torchvision", "DEF")
    for signature in (
        "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "roi_align(Tensor i, Tensor r, float s, int h, int w, int n, bool a) -> Tensor",
        "roi_pool(Tensor i, Tensor r, float s, int h, int w) -> (Tensor, Tensor)",
        "ps_roi_align(Tensor i, Tensor r, float s, int h, int w, int n) -> (Tensor, Tensor)",
        "ps_roi_pool(Tensor i, Tensor r, float s, int h, int w) -> (Tensor, Tensor)",
        "deform_conv2d(Tensor i) -> Tensor",
        "_roi_align_backward(Tensor g) -> Tensor",
        "_roi_pool_backward(Tensor g) -> Tensor",
        "_ps_roi_align_backward(Tensor g) -> Tensor",
        "_ps_roi_pool_backward(Tensor g) -> Tensor",
        "_deform_conv2d_backward(Tensor g) -> Tensor",
    ):
        library.define(signature)
    _KEPT.append(library)


_KEPT: list[Any] = []  # operators go when their library does


def build(source: str, classes: int, arguments: Mapping[str, Any]) -> torch.nn.Module:
    """Makes "timm:NAME" or the network with a dotted name."""
    define_missing_operators()
    if source.startswith("timm:"):
        import timm

        return timm.create_model(source[5:], num_classes=classes, **arguments)
    module, _, name = source.rpartition(".")
    return getattr(importlib.import_module(module), name)(num_classes=classes, **arguments)


def shorten(num_classes: int, source: str, cuts: Sequence[tuple[str, int, int]]) -> torch.nn.Module:
    """Makes a network and removes modules, as first:last of a path, one cut after the other.

    What is left is numbered anew, as in a network made with fewer blocks.
    """
    model = build(source, num_classes, {})
    for path, first, last in cuts:
        modules: Any = model.get_submodule(path)
        del modules[first:last]
    return model


def list_logits(outputs: Any) -> list[torch.Tensor]:
    """The logits and those of auxiliary classifiers, in the order of depth."""
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    if isinstance(outputs, dict):  # of each pixel
        return [outputs[name].permute(0, 2, 3, 1) for name in ("out", "aux") if name in outputs]
    fields = outputs._asdict()
    return [fields.pop("logits"), *(fields[name] for name in sorted(fields))]
