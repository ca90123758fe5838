"""Writes torch_pool.json: pools, their gradients and response normalisation as PyTorch has them.

Run by hand where torch is installed (made with 2.13.0 on CPU):
`python tests/reference/make_torch_pool.py`. Arrays are stored in NHWC.
"""

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F


def window_case(window, strides, pad, ceil_mode, **arguments):
    return {"window": window, "strides": strides, "pad": pad, "ceil_mode": ceil_mode, **arguments}


WINDOW_CASES = [
    ("max_pool", window_case((2, 2), (2, 2), (0, 0), True)),
    ("max_pool", window_case((3, 3), (2, 2), (0, 0), True)),
    ("max_pool", window_case((3, 3), (2, 2), (1, 1), False)),
    ("max_pool", window_case((3, 3), (2, 2), (1, 1), True)),
    ("max_pool", window_case((2, 3), (3, 4), (1, 1), True)),
    ("avg_pool", window_case((3, 3), (2, 2), (0, 0), True, count_include_pad=True)),
    ("avg_pool", window_case((3, 3), (2, 2), (1, 1), True, count_include_pad=True)),
    ("avg_pool", window_case((3, 3), (2, 2), (1, 1), True, count_include_pad=False)),
    ("avg_pool", window_case((2, 3), (3, 4), (1, 1), True, count_include_pad=True)),
    ("avg_pool", window_case((3, 2), (2, 3), (1, 0), False, count_include_pad=False)),
    ("l2_pool", window_case((2, 2), (2, 2), (0, 0), False)),
    ("l2_pool", window_case((3, 3), (2, 2), (0, 0), True)),
    ("l2_pool", window_case((2, 2), (3, 3), (0, 0), True)),
]
RESPONSE_CASES = [
    {"size": size, "k": k, "alpha": alpha, "beta": beta}
    for size, k, alpha, beta in [(5, 1.0, 1e-1, 0.75), (4, 2.0, 1e-1, 0.75), (3, 1.0, 0.5, 0.5)]
]


def evaluate(function, x, *arguments, **keywords):
    """Returns function(x) and its gradient along dy = -3, -2, ... 3, -3, ... in memory order."""
    x = torch.tensor(x, requires_grad=True)
    y = function(x.permute(0, 3, 1, 2), *arguments, **keywords)
    y = y.permute(0, 2, 3, 1)
    dy = torch.arange(y.numel(), dtype=torch.float32).reshape(y.shape) % 7 - 3
    (dx,) = torch.autograd.grad(y, x, dy)
    return {"y": to_list(y.detach().numpy()), "dx": to_list(dx.numpy())}


def to_list(array):
    return array.astype(np.float64).round(6).tolist()


POOLS = {
    "max_pool": lambda x, window, strides, pad, ceil_mode: F.max_pool2d(
        x, window, strides, pad, ceil_mode=ceil_mode
    ),
    "avg_pool": F.avg_pool2d,
    "l2_pool": lambda x, window, strides, pad, ceil_mode: F.lp_pool2d(
        x, 2.0, window, strides, ceil_mode
    ),
}


def main():
    rng = np.random.default_rng(0)
    ties = rng.integers(-2, 2, (2, 8, 7, 2)).astype(np.float32)
    normal = rng.normal(size=(1, 8, 7, 2)).round(3).astype(np.float32)
    channels = rng.normal(size=(1, 2, 2, 9)).round(3).astype(np.float32)
    golden = {
        "ties": ties.tolist(),
        "normal": to_list(normal),
        "channels": to_list(channels),
        "windows": [
            {"pool": pool, "arguments": case}
            | evaluate(POOLS[pool], ties if pool == "max_pool" else normal, *case.values())
            for pool, case in WINDOW_CASES
        ],
        "responses": [
            {"arguments": case} | evaluate(F.local_response_norm, channels, **case)
            for case in RESPONSE_CASES
        ],
    }
    text = json.dumps(golden, separators=(",", ":")).replace('{"pool"', '\n{"pool"')
    Path(__file__).with_name("torch_pool.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
