"""Makes the golden outputs of the parity tests with torchvision, timm and Keras.

    python tests/reference/make.py [--only resnet] [--check]

Needs torch==2.13.0 (CPU build), torchvision, timm and keras, each installed with --no-deps where
that keeps a larger torch or TensorFlow away. Files: golden/MODEL.LAYOUT.npz with float32 `logits`
of the evaluation mode, and of one training step `loss`, and in the order of sorted source names
`gradients` (L2 norms) and `means` and `variances` (L2 norms of the batch statistics of each
BatchNorm; the variances are biased, as Flax averages them); of a second layout also `tensors`,
"NAME SHAPE" of each. --check compares new ones with the
files and writes nothing.
"""

import argparse
import os
import sys

os.environ["KERAS_BACKEND"] = "jax"

import numpy as np
from draw import draw_images, draw_weight
from networks import CLASSES, REFERENCES, Reference

LABELS = np.arange(CLASSES)


def run_torch(reference: Reference) -> dict[str, np.ndarray]:
    """Golden outputs of a network of torchvision or timm."""
    import torch
    import torch_models

    torch.manual_seed(0)
    model = torch_models.build(reference.source, CLASSES, reference.arguments)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("num_batches_tracked"):
                continue
            fan_in = int(np.prod(tensor.shape[1:]))
            value = draw_weight(name, tuple(tensor.shape), fan_in, *reference.scale)
            tensor.copy_(torch.from_numpy(value))
    images = draw_images(reference.batch, reference.side, reference.side, 3)
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    model.eval()
    with torch.no_grad():
        results = {"logits": torch_models.list_logits(model(x))[0].numpy()}
    if reference.is_second_layout:
        results["tensors"] = list_tensors(model)
    if not reference.training:
        return results
    sizes = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0  # the running statistics become the batch's

            def count(module, inputs, name=name):
                sizes[name] = inputs[0].numel() / inputs[0].shape[1]

            module.register_forward_pre_hook(count)
    model.train()
    logits, *auxiliary = torch_models.list_logits(model(x))
    labels = torch.from_numpy(LABELS[: reference.batch])
    loss = torch.nn.functional.cross_entropy(logits, labels)
    for other in auxiliary:
        loss = loss + reference.auxiliary_weight * torch.nn.functional.cross_entropy(other, labels)
    loss.backward()
    parameters = dict(model.named_parameters())
    state = model.state_dict()
    # PyTorch's running variance is unbiased: n / (n - 1) times Flax's.
    biased = {name: (n - 1) / n for name, n in sizes.items()}
    return results | {
        "loss": loss.detach().numpy(),
        "gradients": _norms({name: p.grad.numpy() for name, p in parameters.items()}),
        "means": _norms({f"{n}.running_mean": state[f"{n}.running_mean"].numpy() for n in sizes}),
        "variances": _norms(
            {f"{n}.running_var": state[f"{n}.running_var"].numpy() * biased[n] for n in sizes}
        ),
    }


def list_tensors(model) -> np.ndarray:
    """The names and shapes of a network's tensors, sorted."""
    return np.array(
        sorted(
            f"{name} {tuple(tensor.shape)}"
            for name, tensor in model.state_dict().items()
            if not name.endswith("num_batches_tracked")
        )
    )


def _norms(arrays: dict[str, np.ndarray]) -> np.ndarray:
    return np.array(
        [np.linalg.norm(arrays[name].astype(np.float64)) for name in sorted(arrays)], np.float32
    )


def run(reference: Reference) -> dict[str, np.ndarray]:
    """Golden outputs of one reference."""
    if reference.layout == "keras":
        import keras_models

        return keras_models.run(reference)
    return run_torch(reference)


def main() -> int:
    """Makes or checks the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="part of the name of the networks")
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    args = parser.parse_args()
    different = 0
    for reference in REFERENCES:
        if args.only not in reference.model:
            continue
        results = run(reference)
        if not args.check:
            np.savez_compressed(reference.path, **results)
            print(f"{reference.path.name}: {reference.path.stat().st_size} bytes", flush=True)
            continue
        golden = np.load(reference.path)
        same = set(golden) == set(results) and all(
            np.array_equal(golden[key], results[key])
            if key == "tensors"
            else np.allclose(
                golden[key], results[key], rtol=1e-3, atol=1e-6 * abs(results[key]).max()
            )
            for key in results
        )
        different += not same
        print(f"{reference.path.name}: {'equal' if same else 'DIFFERENT'}", flush=True)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
