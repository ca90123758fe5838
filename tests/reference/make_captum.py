"""Writes golden/captum.json: attributions of a small network by captum.

Run by hand where torch and captum are installed (made with torch 2.13.0, captum 0.9.0):
`python tests/reference/make_captum.py`. The network is two 3x3 convolutions, each with ReLU and
2x2 max pooling, a hidden dense layer and a classifier; weights and images are drawn below.
"""

import json
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent / "golden" / "captum.json"
CLASSES = [2, 0]
WINDOW, STRIDE, STEPS, NOISE = 3, 2, 16, 0.15


def draw_network() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Weights in flax's layouts by the names of SmallCNN, and images [2, 8, 8, 2]."""
    rng = np.random.RandomState(0)
    shapes = {"conv1": (3, 3, 2, 6), "conv2": (3, 3, 6, 8), "fc1": (32, 10), "classifier": (10, 4)}
    weights = {}
    for name, shape in shapes.items():
        weights[f"{name}/kernel"] = rng.randn(*shape) / np.sqrt(np.prod(shape[:-1]))
        weights[f"{name}/bias"] = 0.1 * rng.randn(shape[-1])
    return {k: v.astype(np.float32) for k, v in weights.items()}, rng.randn(2, 8, 8, 2).astype("f")


def main() -> None:
    import captum.attr
    import torch
    from torch import nn

    class Flat(nn.Module):
        def forward(self, x):
            return x.permute(0, 2, 3, 1).flatten(1)

    weights, images = draw_network()
    tensors = {k: torch.from_numpy(v) for k, v in weights.items()}
    layers = {
        "conv1": nn.Conv2d(2, 6, 3, padding=1),
        "relu1": nn.ReLU(),
        "pool1": nn.MaxPool2d(2),
        "conv2": nn.Conv2d(6, 8, 3, padding=1),
        "relu2": nn.ReLU(),
        "pool2": nn.MaxPool2d(2),
        "flat": Flat(),
        "fc1": nn.Linear(32, 10),
        "relu3": nn.ReLU(),
        "classifier": nn.Linear(10, 4),
    }
    for name in ("conv1", "conv2", "fc1", "classifier"):
        kernel = tensors[f"{name}/kernel"]
        axes = (3, 2, 0, 1) if kernel.ndim == 4 else (1, 0)
        layers[name].weight.data = kernel.permute(*axes).contiguous()
        layers[name].bias.data = tensors[f"{name}/bias"]
    model = nn.Sequential(*layers.values()).eval()
    x = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().requires_grad_()
    target = torch.tensor(CLASSES)
    spread = (x.amax((1, 2, 3)) - x.amin((1, 2, 3))).tolist()
    torch.manual_seed(0)
    smooth = [
        captum.attr.NoiseTunnel(captum.attr.Saliency(model)).attribute(
            x[i : i + 1],
            nt_samples=20_000,
            nt_samples_batch_size=1_000,
            stdevs=NOISE * spread[i],
            target=CLASSES[i],
            abs=False,
        )
        for i in range(2)
    ]

    def grad_cam(layer):
        cam = captum.attr.LayerGradCam(model, layers[layer])
        maps = cam.attribute(x, target=target, relu_attributions=True)
        return captum.attr.LayerAttribution.interpolate(maps, (8, 8), "bilinear")

    found = {
        "saliency": captum.attr.Saliency(model).attribute(x, target=target, abs=False),
        "smooth_grad": torch.cat(smooth),
        "integrated_gradients": captum.attr.IntegratedGradients(model).attribute(
            x, baselines=0.0, target=target, n_steps=STEPS, method="gausslegendre"
        ),
        "guided_backpropagation": captum.attr.GuidedBackprop(model).attribute(x, target=target),
        "deconvolution": captum.attr.Deconvolution(model).attribute(x, target=target),
        "grad_cam": grad_cam("pool2"),
        "grad_cam of conv2": grad_cam("conv2"),
        "occlusion": captum.attr.Occlusion(model).attribute(
            x,
            sliding_window_shapes=(2, WINDOW, WINDOW),
            strides=(2, STRIDE, STRIDE),
            baselines=0.0,
            target=target,
        ),
    }
    golden = {}
    for name, value in found.items():
        array = value.detach().permute(0, 2, 3, 1).numpy()
        array = array[..., :1] if name == "occlusion" else array  # alike in all channels
        golden[name] = {"shape": array.shape, "values": [float(f"{v:.6g}") for v in array.ravel()]}
    lines = [f'"{k}": {json.dumps(v, separators=(",", ":"))}' for k, v in golden.items()]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
