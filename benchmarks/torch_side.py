"""The training step in PyTorch, eager or compiled, in either memory layout."""

import time

import torch
from networks import Network
from torch import nn
from torch.nn import functional as F  # noqa: N812 the customary name


class TorchNetwork(nn.Module):
    """A definition as a module: the first call makes the layers, later ones pass through them."""

    def __init__(self, network: Network):
        super().__init__()
        self.define, self.layers, self.building = network.define, nn.ModuleList(), True
        height, width, channels = network.input_shape
        with torch.no_grad():
            self(torch.zeros(2, channels, height, width))
        self.building = False

    def forward(self, images):
        """Maps images [N, C, H, W] to logits."""
        self.position = 0
        return self.define(self, images)

    def _pass(self, make, x):
        if self.building:
            self.layers.append(make(x.shape[1]))
        self.position += 1
        return self.layers[self.position - 1](x)

    def conv(self, x, features, kernel, stride=1, *, padding=None, groups=1, bias=False):
        """Convolution; `padding` zeros on every side."""
        pad = (kernel - 1) // 2 if padding is None else padding
        return self._pass(
            lambda channels: nn.Conv2d(
                channels, features, kernel, stride, pad, groups=groups, bias=bias
            ),
            x,
        )

    def depthwise(self, x, kernel, stride=1):
        """Convolution of each channel with a kernel of its own."""
        return self._pass(
            lambda channels: nn.Conv2d(
                *(channels, channels, kernel, stride, kernel // 2), groups=channels, bias=False
            ),
            x,
        )

    def batch_norm(self, x):
        """BatchNorm in training mode."""
        return self._pass(nn.BatchNorm2d, x)

    def max_pool(self, x, window, stride, padding=0):
        """Maximum over square windows."""
        return F.max_pool2d(x, window, stride, padding)

    def avg_pool(self, x, window, stride):
        """Mean over square windows."""
        return F.avg_pool2d(x, window, stride)

    def global_avg_pool(self, x):
        """Mean over each map."""
        return x.mean((2, 3))

    def relu(self, x, keep=False):
        """Rectifier, in place unless `x` is used again."""
        return F.relu(x, inplace=not keep)

    def relu6(self, x):
        """Rectifier clipped at 6, in place."""
        return F.relu6(x, inplace=True)

    def concat(self, maps):
        """Maps side by side along the channels."""
        return torch.cat(maps, 1)

    def flatten(self, x):
        """One row per image."""
        return torch.flatten(x, 1)

    def dense(self, x, features):
        """Dense layer with bias."""
        return self._pass(lambda width: nn.Linear(width, features), x)


def make_model(network: Network) -> nn.Module:
    """Makes the network and unrolls its definition, so that a step runs layers and nothing else."""
    return torch.fx.symbolic_trace(TorchNetwork(network))


def prepare_training(
    network: Network, batch: int, channels_last: bool, compiled: bool, device: str = "cpu"
):
    """Makes the training step; returns `run(steps) -> loss` and what is known of the step.

    On "cuda" it computes in bfloat16 under autocast.
    """
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = make_model(network).train().to(device, memory_format=layout)
    params = sum(p.numel() for p in model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9, fused=True)
    height, width, channels = network.input_shape
    images = torch.randn(batch, channels, height, width).to(device, memory_format=layout)
    labels = torch.randint(network.num_classes, (batch,)).to(device)
    forward = torch.compile(model) if compiled else model
    autocast = torch.autocast(device, torch.bfloat16, enabled=device == "cuda")
    torch.backends.cudnn.benchmark = True  # on CPU nothing

    def run(steps: int) -> float:
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            with autocast:
                loss = F.cross_entropy(forward(images), labels)
            loss.backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        return float(loss.detach())

    known = {"params": params, "unit": 1, "compile_seconds": 0.0}
    if compiled:
        start = time.perf_counter()
        run(1)
        known["compile_seconds"] = time.perf_counter() - start
    return run, known


def prepare_inference(network: Network, batch: int, channels_last: bool):
    """Makes the forward pass of `eval()`; returns as `prepare_training` does."""
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = make_model(network).eval().to(memory_format=layout)
    height, width, channels = network.input_shape
    images = torch.randn(batch, channels, height, width).to(memory_format=layout)

    def run(steps: int) -> float:
        with torch.inference_mode():
            for _ in range(steps):
                logits = model(images)
            return float(logits[0, 0])

    params = sum(p.numel() for p in model.parameters())
    return run, {"params": params, "unit": 1, "compile_seconds": 0.0}


def prepare_matmul(size: int):
    """A float32 matrix product of `size` cubed; returns as `prepare_training` does."""
    x = torch.randn(size, size)

    def run(steps: int) -> float:
        for _ in range(steps):
            torch.mm(x, x)
        return 0.0

    return run, {"macs": size**3, "unit": 1}
