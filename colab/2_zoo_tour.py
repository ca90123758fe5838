# ---
# jupyter:
#   colab:
#     provenance: []
#   jupytext:
#     notebook_metadata_filter: accelerator,colab
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A tour of the zoo
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/flaxcnn/flaxcnn/blob/main/colab/2_zoo_tour.ipynb)
#
# **What you will see:** all networks of flaxcnn on one map of sizes, from LeNet-5 to NASNet; one of
# each family run on a photograph, with its paper, size and speed; what happens to the photograph
# inside five of them; and where the papers and the well-known ports differ.
#
# **Runtime:** CPU is enough, and costs nothing. Most of the time goes into compiling two dozen
# networks; the weights are random, nothing is downloaded.

# %% [markdown]
# ## Install
#
# flaxcnn, and of what it needs only the packages that this runtime lacks. jax, NumPy and the rest
# stay as they are, so nothing has to be restarted.

# %%
import importlib.metadata
import importlib.util
import os
import subprocess
import sys

from packaging.requirements import Requirement

SOURCE = "https://github.com/flaxcnn/flaxcnn/archive/refs/heads/main.zip"
QUICK = os.environ.get("FLAXCNN_NOTEBOOK") == "quick"  # the small settings of the tests


def install(*arguments):
    """Add packages. A jax that pip replaced would compute on the CPU: it takes none along."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", *arguments]
    subprocess.run(command, check=True)


def find_missing(package):
    """What a package needs and this runtime lacks; nothing of a clone that is not installed."""
    missing = []
    for wanted in map(Requirement, importlib.metadata.requires(package) or []):
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(str(wanted))
            continue
        if not wanted.specifier.contains(version, prereleases=True):
            raise RuntimeError(
                f"{wanted.name} {version} is here and flaxcnn needs {wanted.specifier}: begin with "
                "a new runtime (Runtime > Disconnect and delete runtime), then see colab/README.md"
            )
    return missing


if importlib.util.find_spec("flaxcnn") is None:
    install(SOURCE)
    if missing := find_missing("flaxcnn"):
        install(*missing)

# %% [markdown]
# ## Where it computes
#
# If this runtime has a GPU or TPU and JAX does not use it, the next cell stops and says why.

# %%
import jax

from flaxcnn.training.environment import unused_accelerator

print("jax", jax.__version__, "on", *jax.devices())
if problem := unused_accelerator():
    raise RuntimeError(problem)

# %% [markdown]
# ## All of them
#
# Parameters are what a network stores, multiply-adds what one image costs. Both are exact, counted
# as in the paper, and tested for every network. Those with a name are run below.

# %%
import matplotlib.pyplot as plt

import flaxcnn
from flaxcnn.models import variant

FAMILIES = [  # one network of each
    "lenet5_1998",
    "alexnet",
    "nin_cifar10",
    "zfnet",
    "vgg11",
    "googlenet",
    "bn_inception",
    "inception_v3",
    "cifar_resnet20",
    "squeezenet1_1",
    "inception_v4",
    "inception_resnet_v1",
    "xception",
    "densenet121",
    "darknet19",
    "resnet50v2",
    "resnext50_32x4d",
    "mobilenet_v1_0.25_128",
    "seresnet50",
    "nasnet_a_mobile",
    "mobilenet_v2_0.35_96",
    "mnist_mlp_512",
    "digits_cnn",
    "pyramid_cnn",
    "airbench94",
]
known = {name: variant(name) for name in flaxcnn.list_models()}
figure, panel = plt.subplots(figsize=(11, 7), layout="constrained")
points = panel.scatter(
    [network.macs for network in known.values()],
    [network.params for network in known.values()],
    c=[network.year for network in known.values()],
    vmin=2010,
    cmap="viridis",
)
for rank, name in enumerate(sorted(FAMILIES, key=lambda name: known[name].params)):
    panel.annotate(
        name,
        (known[name].macs, known[name].params),
        (1.03, rank / len(FAMILIES)),
        textcoords="axes fraction",
        fontsize=9,
        arrowprops={"arrowstyle": "-", "color": "#D00000", "linewidth": 0.6, "relpos": (0, 0.5)},
    )
panel.set(xscale="log", yscale="log", xlabel="multiply-adds for one image", ylabel="parameters")
figure.colorbar(points, label="year", extend="min", location="left")
plt.show()
print(len(known), "networks")

# %% [markdown]
# ## One of each family, run
#
# The photograph comes with scikit-learn. Each network sees it in the size that its paper uses. A
# network is a plain Flax module: `create_model` makes it, `model.init` its variables, `model.apply`
# runs it. The variables are random here, and NumPy's, in the shapes that `jax.eval_shape` finds:
# that saves compiling two dozen programs that draw them.
#
# The milliseconds are those of one image on this runtime, once compiled.

# %%
import functools
import time

import cv2
import numpy as np
from IPython.display import Markdown, display
from sklearn.datasets import load_sample_image

photograph = load_sample_image("flower.jpg")[:, 106:533]  # a square


def fit(shape):
    """The photograph as float32 [1, height, width, channels] in -1..1."""
    image = cv2.resize(photograph, shape[1::-1], interpolation=cv2.INTER_AREA) / 127.5 - 1
    return np.float32(image if shape[2] == 3 else image.mean(-1, keepdims=True))[None]


def fill(path, leaf):
    """Random kernels of He's size (2015), scales and variances of one, zeros elsewhere."""
    if path[-1].key == "kernel":
        deviation = np.sqrt(2 / np.prod(leaf.shape[:-1]))
        return np.random.default_rng(0).standard_normal(leaf.shape, np.float32) * deviation
    return np.full(leaf.shape, path[-1].key in ("scale", "var"), np.float32)


def run(model, variables, images):
    """The network's outputs, and the milliseconds of the second time."""
    apply = jax.jit(functools.partial(model.apply, train=False))
    jax.block_until_ready(apply(variables, images))
    started = time.perf_counter()
    outputs = jax.block_until_ready(apply(variables, images))
    return outputs, 1000 * (time.perf_counter() - started)


rows = [
    "| network | parameters | multiply-adds | input | ms | paper |",
    "|---|--:|--:|--:|--:|---|",
]
milliseconds = {}
for name in FAMILIES[:4] if QUICK else FAMILIES:
    network, model = known[name], flaxcnn.create_model(name)
    images = jax.device_put(fit(network.input_shape))
    shapes = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)
    variables = jax.device_put(jax.tree_util.tree_map_with_path(fill, shapes))
    logits, milliseconds[name] = run(model, variables, images)
    if not np.isfinite(logits).all():
        raise RuntimeError(f"{name} gives {logits}")
    shape = "x".join(map(str, network.input_shape))
    rows.append(
        f"| {name} | {network.params:,} | {network.macs:,} | {shape} | {milliseconds[name]:.1f} "
        f"| {network.paper}{f' ({network.year})' if network.year else ''} |"
    )
    print(f"{name}: logits {logits.shape}, {milliseconds[name]:.1f} ms", flush=True)
display(Markdown("\n".join(rows)))

# %% [markdown]
# Multiply-adds are not time: those of few channels, and of separate channels, keep a processor
# waiting for memory.

# %%
figure, panel = plt.subplots(figsize=(8, 0.3 * len(milliseconds) + 1), layout="constrained")
costs = {name: known[name].macs / took / 1e6 for name, took in milliseconds.items()}  # billions/s
names = sorted(costs, key=costs.__getitem__)
panel.barh(names, [costs[name] for name in names], color="#0072B2")
panel.set(xlabel="billion multiply-adds in a second, one image at a time")
plt.show()

# %% [markdown]
# ## Inside
#
# `features_only=True` gives the maps that a network makes on the way, `out_indices` chooses. Here
# is each map's strength, the mean over its channels, from fine to coarse. The weights are random,
# drawn as the network's paper says (`flaxcnn.init`: what `jit(model.init)` gives, compiled sooner),
# and still the flower can be seen for long: that is what an architecture brings along.

# %%
chosen = ["alexnet", "vgg11", "squeezenet1_1", "resnext50_32x4d", "mobilenet_v1_0.25_128"]
chosen = chosen[:1] if QUICK else chosen
figure, axes = plt.subplots(len(chosen), 6, figsize=(12, 2.3 * len(chosen)), squeeze=False)
for name, panels in zip(chosen, axes, strict=True):
    for panel in panels:
        panel.axis("off")
    shape = known[name].input_shape
    panels[0].imshow((fit(shape)[0] + 1) / 2)
    panels[0].set_title(name, fontsize=9)
    model = flaxcnn.create_model(name, features_only=True)
    maps, _ = run(model, flaxcnn.init(model, jax.random.key(0), shape), fit(shape))
    information = flaxcnn.feature_info(model, shape)
    last = list(zip(maps, information, strict=True))[-5:]
    for panel, (features, info) in zip(panels[1:], last, strict=False):
        panel.imshow(np.abs(features[0]).mean(-1), cmap="magma")
        height, width, channels = features.shape[1:]
        panel.set_title(f"{info.name}\n{height}x{width}x{channels}", fontsize=8)
plt.show()

# %% [markdown]
# ## What the paper says, what the ports do
#
# "ResNet-50" is not one network: where a paper and torchvision, timm, Keras or Caffe differ,
# flaxcnn has both, and says which name is which. Two with the same parameters, and other costs:

# %%
for name in ("resnet50", "resnet50_v1"):
    print(f"{name:<12} {known[name].params:,} parameters  {known[name].macs:,} multiply-adds")

# %% [markdown]
# The rest of the list is docs/deviations.md; these are some of its rows.

# %%
import fnmatch

from flaxcnn.models._registry import DEVIATIONS

rows = ["| network | paper | ports | flaxcnn |", "|---|---|---|---|"]
for name in ("alexnet", "googlenet", "resnet50", "squeezenet1_0", "vgg16"):
    for deviation in DEVIATIONS:
        if any(fnmatch.fnmatchcase(name, each) for each in deviation.models.split(", ")):
            rows.append(f"| {name} | {' | '.join(deviation[1:])} |")
display(Markdown("\n".join(rows)))
