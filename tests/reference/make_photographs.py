"""Writes golden/photographs.json: what PyTorch makes of the photographs with the real weights.

Run by hand where torch, safetensors and Pillow are installed, beside ../shared (made with torch
2.13.0 on CPU): `python tests/reference/make_photographs.py`. For each network and photograph the
five best classes and the logit of the first. The MobileNets run operation by operation from their
TFLite graphs (.graph.json), SqueezeNet from the layers of its prototxt.
"""

import json
import lzma
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
import torch.nn.functional as F
from photographs import GOLDEN, WEIGHTS, find_best, load_photographs

DATA = Path(__file__).parents[3] / "shared" / "data"
ACTIVATIONS = {"RELU6": lambda x: x.clamp(0, 6), "NONE": lambda x: x}


def load_tensors(name):
    """Reads the weights for the named network; 8-bit ones become float32 under NAME.weight."""
    content = (DATA / "weights" / WEIGHTS[name].file).read_bytes()
    if WEIGHTS[name].file.endswith(".xz"):
        content = lzma.decompress(content)
    tensors = safetensors.numpy.load(content)
    for key in [key for key in tensors if key.endswith(".weight_q")]:
        layer = key.removesuffix(".weight_q")
        zero, scale = (tensors.pop(f"{layer}.weight_{x}") for x in ("zero_point", "scale"))
        steps = tensors.pop(key).astype(np.int32) - zero
        tensors[f"{layer}.weight"] = steps.astype(np.float32) * scale
    return tensors


def run_squeezenet(tensors, x):
    def conv(x, name, stride=1, padding=0):
        x = F.conv2d(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"], stride, padding)
        return x.relu()

    x = conv(x, "conv1", stride=2)
    for number in range(2, 10):
        if number in (2, 5, 9):
            x = F.max_pool2d(x, 3, 2, ceil_mode=True)
        x = conv(x, f"fire{number}/conv1x1_1")
        x = torch.cat(
            [conv(x, f"fire{number}/conv1x1_2"), conv(x, f"fire{number}/conv3x3_2", padding=1)], 1
        )
    return conv(x, "conv_final", padding=1).mean((2, 3))


def run_graph(graph, tensors, x):
    values = {graph["input_tensor"]: x}
    for op in graph["ops"]:
        inputs = [values[number] for number in op["in"] if number in values]
        if op["op"] == "add":
            x = inputs[0] + inputs[1]
        elif "conv" in op["op"]:
            x = run_conv(op, tensors, inputs[0])
        elif "pool" in op["op"]:
            x = inputs[0].mean((2, 3), keepdim=True)
        elif op["op"] in ("reshape", "softmax"):  # the logits are wanted
            x = inputs[0]
        else:
            raise ValueError(f"unknown operation {op}")
        for number in op["out"]:
            values[number] = ACTIVATIONS[op["activation"] or "NONE"](x)
    return x.flatten(1)


def run_conv(op, tensors, x):
    weight = tensors[f"{op['name']}.weight"]
    groups = x.shape[1] if op["op"] == "depthwise_conv" else 1
    weight = weight.permute(3, 0, 1, 2) if groups > 1 else weight.permute(0, 3, 1, 2)
    stride, size = op["stride"][0], weight.shape[-1]
    if op["padding"] == "SAME":
        rows, cols = (max((-(-n // stride) - 1) * stride + size - n, 0) for n in x.shape[2:])
        x = F.pad(x, (cols // 2, cols - cols // 2, rows // 2, rows - rows // 2))
    return F.conv2d(x, weight, tensors[f"{op['name']}.bias"], stride, groups=groups)


def main():
    golden = {}
    for name, weights in WEIGHTS.items():
        tensors = {k: torch.from_numpy(v) for k, v in load_tensors(name).items()}
        files, images, labels = load_photographs(DATA, name)
        x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        with torch.no_grad():
            if weights.file.startswith("squeezenet"):
                logits = run_squeezenet(tensors, x).numpy()
            else:
                graph = weights.file.replace(".safetensors", ".graph.json")
                graph = json.loads((DATA / "weights" / graph).read_text())
                logits = run_graph(graph, tensors, x).numpy()
        best = find_best(logits)
        right = best == labels[:, None]
        print(f"{name}: top-1 {right[:, 0].sum()}, top-5 {right.sum()} of {len(files)}")
        golden[name] = {
            file: {"classes": row.tolist(), "logit": round(float(values[row[0]]), 4)}
            for file, row, values in zip(files, best, logits, strict=True)
        }
    text = json.dumps(golden, separators=(",", ":")).replace('"n', '\n"n')
    GOLDEN.write_text(text + "\n")


if __name__ == "__main__":
    main()
