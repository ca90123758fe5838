"""The ImageNet photographs and pretrained weights in ../shared/data, and how they go together."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
from PIL import Image

Array = np.ndarray

GOLDEN = Path(__file__).parent / "golden" / "photographs.json"
# Of the logits there: they are of Pillow 13, which decodes some JPEGs otherwise than 12.
TOLERANCE = 1e-3 if int(PIL.__version__.split(".")[0]) >= 13 else 1e-2


class Weights(NamedTuple):
    """A file of weights, and the images that it wants: float32 [side, side, 3]."""

    file: str
    side: int
    prepare: Callable[[Array], Array]  # of RGB 0..255
    background: int  # classes before the first of ImageNet


def _to_caffe(image: Array) -> Array:
    return image[..., ::-1] - np.array([104, 117, 123], np.float32)


def _to_slim(image: Array) -> Array:
    return image / 127.5 - 1


WEIGHTS = {
    "squeezenet1_0_caffe": Weights(
        "squeezenet_v1.0_deepcompression.safetensors.xz", 227, _to_caffe, 0
    ),
    "mobilenet_v1_0.25_128": Weights("mobilenet_v1_0.25_128_q8.safetensors", 128, _to_slim, 1),
    "mobilenet_v2_1.00_224": Weights("mobilenet_v2_1.0_224_q8.safetensors", 224, _to_slim, 1),
}


def load_photographs(data: Path, name: str) -> tuple[list[str], Array, Array]:
    """Reads the photographs for the named network: file names, images [N, H, W, 3], outputs wanted.

    The middle square, 87.5 % of the shorter side, is resized with bilinear interpolation.
    """
    weights = WEIGHTS[name]
    with tarfile.open(data / "imagenet-samples.tar.gz") as archive:
        files = {
            Path(member.name).name: archive.extractfile(member).read()
            for member in archive
            if member.isfile()
        }
    labels = json.loads(files["labels.json"])
    names = sorted(labels)
    images = np.stack([_crop(files[n], weights.side) for n in names])
    return names, weights.prepare(images), np.array([labels[n] for n in names]) + weights.background


def _crop(content: bytes, side: int) -> Array:
    image = Image.open(io.BytesIO(content)).convert("RGB")
    width, height = image.size
    half = 0.875 * min(width, height) / 2
    box = (width / 2 - half, height / 2 - half, width / 2 + half, height / 2 + half)
    square = image.resize((side, side), Image.Resampling.BILINEAR, box)
    return np.asarray(square, np.float32)


def find_best(logits: Array) -> Array:
    """The five best classes of each image, the best one first."""
    return np.argsort(-logits, axis=1, kind="stable")[:, :5]
