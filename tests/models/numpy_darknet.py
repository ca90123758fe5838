"""Darknet's forward pass in NumPy, layer by layer as a .cfg lists them: maps are [N, C, H, W]."""

import numpy as np
import numpy_layers as layers

from flaxcnn.weights.formats.darknet import parse_cfg


def write_cfg(*lines: str, side: int = 64) -> str:
    """A .cfg from short lines: "32@3" is a convolution, "32@3/2" with stride 2, "p2/2" a pooling.

    "out255" is the last convolution of a scale, "up", "reorg", "add-3" and "route-1,8" the layers
    of those names. "(256@1 512@3)x2" is not expanded: write it with Python.
    """
    text = [f"[net]\nwidth={side}\nheight={side}\nchannels=3"]
    for word in " ".join(lines).split():
        if word.startswith("p"):
            size, stride = word[1:].split("/")
            text.append(f"[maxpool]\nsize={size}\nstride={stride}")
        elif word.startswith("out"):
            text.append(
                f"[convolutional]\nfilters={word[3:]}\nsize=1\nstride=1\npad=1\nactivation=linear"
            )
            text.append("[yolo]\nclasses=80")
        elif word.startswith("route"):
            text.append(f"[route]\nlayers = {word[5:]}")
        elif word.startswith("add"):
            text.append(f"[shortcut]\nfrom={word[3:]}\nactivation=linear")
        elif word in ("up", "reorg"):
            text.append(f"[{'upsample' if word == 'up' else word}]\nstride=2")
        else:
            features, size = word.split("@")
            size, _, stride = size.partition("/")
            text.append(
                f"[convolutional]\nbatch_normalize=1\nfilters={features}\nsize={size}\n"
                f"stride={stride or 1}\npad=1\nactivation=leaky"
            )
    return "\n\n".join(text) + "\n"


def forward(cfg: str, tensors: dict, images: np.ndarray) -> list[np.ndarray]:
    """The maps that each [yolo] gets, [N, H, W, C]; `images` too."""
    done, heads, number = [], [], 0
    x = images.transpose(0, 3, 1, 2).astype(float)
    for section in parse_cfg(cfg)[1:]:
        options = section.options
        if section.kind == "convolutional":
            get = {n.split(".")[1]: t for n, t in tensors.items() if n.startswith(f"{number}.")}
            x = convolve(x, options, get)
            number += 1
        elif section.kind == "maxpool":
            size, stride = int(options["size"]), int(options["stride"])
            # maxpool_layer.c: size - 1 places beyond the map in all, half of them before it
            sides = [(s + size - 1 - size) // stride + 1 for s in x.shape[2:]]
            low = (size - 1) // 2
            beyond = [
                (low, max((n - 1) * stride + size - s - low, 0))
                for n, s in zip(sides, x.shape[2:], strict=True)
            ]
            y = np.pad(x, ((0, 0), (0, 0), *beyond), constant_values=-np.inf)
            y = layers.max_pool(y.transpose(0, 2, 3, 1), size, stride)
            x = y[:, : sides[0], : sides[1]].transpose(0, 3, 1, 2)
        elif section.kind == "route":
            places = [int(i) for i in options["layers"].split(",")]
            x = np.concatenate([done[i if i >= 0 else len(done) + i] for i in places], axis=1)
        elif section.kind == "shortcut":
            x = x + done[len(done) + int(options["from"])]
        elif section.kind == "upsample":
            x = x.repeat(2, 2).repeat(2, 3)
        elif section.kind == "reorg":
            x = reorg(x)
        elif section.kind == "yolo":
            heads.append(x.transpose(0, 2, 3, 1))
        done.append(x)
    return heads


def convolve(x, options, tensors):
    size = int(options["size"])
    kernel = tensors["weights"].transpose(2, 3, 1, 0)
    y = layers.conv2d(x.transpose(0, 2, 3, 1), kernel, None, int(options["stride"]), size // 2)
    if "batch_normalize" in options:  # batchnorm_layer.c, on a GPU
        y = (y - tensors["rolling_mean"]) / np.sqrt(tensors["rolling_variance"] + 1e-5)
        y = y * tensors["scales"]
    y = y + tensors["biases"]
    if options["activation"] == "leaky":
        y = np.where(y > 0, y, 0.1 * y)
    return y.transpose(0, 3, 1, 2)


def reorg(x, stride=2):
    """reorg_cpu of blas.c, index for index, as forward_reorg_layer calls it."""
    batch, channels, height, width = x.shape
    source, out = x.reshape(batch, -1), np.empty((batch, x[0].size))
    out_c = channels // stride**2
    for k, j, i in np.ndindex(channels, height, width):
        c2, offset = k % out_c, k // out_c
        w2, h2 = i * stride + offset % stride, j * stride + offset // stride
        out[:, i + width * (j + height * k)] = source[
            :, w2 + width * stride * (h2 + height * stride * c2)
        ]
    return out.reshape(batch, channels * stride**2, height // stride, width // stride)
