"""The arguments of `flaxcnn visualize KIND`."""

import argparse
from typing import Any

# Those of one image file or several, and what they draw.
_OF_IMAGES = {
    "samples": "Images beside each other, with the names of their files.",
    "channels": "An image and each of its channels.",
    "pixels": "The values of an image's pixels, as numbers in a grid.",
    "kernels": "What fixed kernels (Sobel, blur, sharpen) make of an image, here and in OpenCV.",
}
_OF_NETWORKS = {
    "filters": "The filters of a network's first convolution.",
    "features": "The maps of a layer for an image.",
    "deconv": "The nine patches that excite units most, and their deconvnet reconstructions.",
    "attribution": "Which pixels a class depends on, by several methods.",
    "saliency": "The gradient of a class' score.",
    "smooth_grad": "The mean gradient over noisy copies of an image.",
    "integrated_gradients": "The gradient along the way from a grey image.",
    "guided_backpropagation": "The gradient, cut to what is positive behind every ReLU.",
    "deconvolution": "A class' score sent back through a deconvnet.",
    "grad_cam": "The last maps weighted by their gradients.",
    "occlusion": "By how much a class' score falls where the image is covered.",
    "maximize": "Images that excite units most.",
    "receptive_field": "The receptive field of a network's layers against their depth.",
    "diagram": "A network as a block diagram (SVG).",
}
_WITHOUT_IMAGES = ("filters", "maximize", "receptive_field", "diagram")
_OF_UNITS = ("deconv", "maximize")


def add_kinds(kinds: Any) -> None:
    """Adds every KIND but `augment` to the subparsers of `flaxcnn visualize`."""
    for kind, text in _OF_IMAGES.items():
        command = _add(kinds, kind, text, "visualize_images")
        command.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
        if kind == "pixels":
            command.add_argument(
                "--at", metavar="ROW,COLUMN,HEIGHT,WIDTH", help="the part to draw (default: all)"
            )
        elif kind == "kernels":
            command.add_argument(
                "--kernel",
                action="append",
                metavar="ROWS",
                help='a kernel of your own, such as "0 1 0; 1 -4 1; 0 1 0"; may be repeated',
            )
    text = "Mean, deviation and gradients of every layer: at a network's start, or along a run."
    command = _add(kinds, "signals", text, "visualize_signals")
    command.add_argument("networks", nargs="+", metavar="NAME|RUN", help="networks and runs")
    command.add_argument("--images", type=int, default=32, metavar="N", help="that are measured")
    for kind, text in _OF_NETWORKS.items():
        command = _add(kinds, kind, text, "visualize_network")
        _add_network(command)
        if kind not in _WITHOUT_IMAGES:
            command.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
        if kind in _OF_UNITS:
            command.add_argument("--layer", required=True, help="as in the parameters' paths")
            command.add_argument(
                "--units", default="0,1,2,3", metavar="LIST", help="channels (default: 0,1,2,3)"
            )
        elif kind in ("features", "grad_cam"):
            needed = kind == "features"
            command.add_argument("--layer", required=needed, help="as in the parameters' paths")
        if kind == "maximize":
            command.add_argument("--steps", type=int, default=256, metavar="N")
        if kind == "features":
            command.add_argument("--count", type=int, default=64, metavar="N", help="maps to draw")
        if kind not in (*_WITHOUT_IMAGES, "features", "deconv"):
            command.add_argument(
                "--class",
                dest="class_index",
                type=int,
                metavar="INDEX",
                help="the class that is explained (default: the predicted one)",
            )


def _add(kinds: Any, kind: str, text: str, module: str) -> argparse.ArgumentParser:
    command = kinds.add_parser(kind, help=text, description=text)
    suffix = "svg" if kind == "diagram" else "png"
    command.set_defaults(module=module)
    command.add_argument(
        "--out", default=f"{kind}.{suffix}", metavar=suffix.upper(), help="the picture"
    )
    return command


def _add_network(command: argparse.ArgumentParser) -> None:
    command.add_argument("--workdir", metavar="RUN", help="a run of `flaxcnn train`, or ...")
    command.add_argument("--checkpoint", default="best", choices=("best", "last"))
    command.add_argument("--model", metavar="NAME", help="... a network of `flaxcnn list`, or")
    command.add_argument(
        "--weights",
        metavar="W",
        help="as of `flaxcnn predict` (default: those that --model starts with)",
    )
    command.add_argument(
        "--num-classes", type=int, metavar="N", help="of the weights, if not the network's own"
    )
