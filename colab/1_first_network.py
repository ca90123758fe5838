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
# # A first network: handwritten digits in five minutes
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/flaxcnn/flaxcnn/blob/main/colab/1_first_network.ipynb)
#
# **What you will see:** a convolutional network with 220,426 parameters that learns to read the
# 60,000 handwritten digits of MNIST and gets about 99 % of 10,000 others right. Then its learning
# curves, which digits it takes for which, the images it gets wrong, and its first filters.
#
# **Runtime:** CPU is enough, and costs nothing. *Runtime > Run all*, and come back in five minutes.

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
# ## The data
#
# tensorflow-datasets downloads MNIST (11 MB) and prepares it once, with TensorFlow. That happens in
# a process of its own, so that TensorFlow takes no memory here and no accelerator.


# %%
def prepare(name):
    """Download and prepare a set of tensorflow-datasets, if it is not there yet."""
    import tensorflow_datasets as tfds

    if tfds.builder(name, data_dir=os.environ.get("TFDS_DATA_DIR")).info.splits:
        return
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    if importlib.util.find_spec("tensorflow") is None:  # a TPU runtime: beside its packages
        folder = "/tmp/tensorflow"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", folder]
        subprocess.run([*command, "tensorflow-cpu"], check=True)
        environment["PYTHONPATH"] = folder
    code = f"import tensorflow_datasets as tfds; builder = tfds.builder('{name}')"
    code += "; builder.download_and_prepare(file_format='array_record')"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


prepare("mnist")

# %%
import matplotlib.pyplot as plt
import tensorflow_datasets as tfds

examples = tfds.data_source("mnist", split="train[:32]")
figure, axes = plt.subplots(4, 8, figsize=(8, 4.6))
for panel, example in zip(axes.flat, examples, strict=True):
    panel.imshow(example["image"][..., 0], cmap="gray")
    panel.set_title(example["label"], fontsize=9)
    panel.axis("off")
plt.show()

# %% [markdown]
# ## Train
#
# The settings are those of `configs/mnist_speed.py`, with two passes over the data ("epochs") and
# a twentieth of it held out to see how well the network does on digits it does not learn from.
#
# Stop the cell whenever you like: run again, it resumes where it was. A run that has finished is
# not repeated; delete its folder, or choose another, to train anew.

# %%
import flaxcnn
from flaxcnn.training import load_config

config = load_config("mnist_speed")
config.epochs = 2
config.data.validation = 0.05
if QUICK:
    config.epochs = 1
    config.data.balance.subsample.update({str(digit): 0.04 for digit in range(10)})

folder = "runs/first_network"
result = flaxcnn.train(config, folder)
if result is None:
    raise RuntimeError("stopped; run this cell again to resume")
print(f"right on {result['accuracy']:.2%} of the digits it has never seen")

# %% [markdown]
# ## How it learned
#
# The loss, which is what training makes smaller; the share of digits it gets right; and the
# learning rate, which rises and falls again ("one cycle"). All of these pictures are in the run's
# folder, too.

# %%
from IPython.display import Image, display

display(Image(f"{folder}/curves.png"))

# %% [markdown]
# ## What it confuses
#
# A row for each digit, a column for what the network took it for. Which two does it mix up most?

# %%
display(Image(f"{folder}/confusion_matrix.png", width=600))

# %% [markdown]
# Its mistakes, the surest first, and some that it got right. Would you have known better?

# %%
display(Image(f"{folder}/predictions.png"))

# %% [markdown]
# ## What it looks for
#
# The 32 filters of the first layer, 3x3 pixels each: blue is negative, red positive. Edges and
# strokes of some direction are what the other layers build on.

# %%
import numpy as np

from flaxcnn.training.inference import load_run

run = load_run(folder)
filters = np.asarray(run.variables["params"]["conv1"]["kernel"])[:, :, 0]  # height, width, filter
limit = np.abs(filters).max()
figure, axes = plt.subplots(4, 8, figsize=(8, 4.2))
for index, panel in enumerate(axes.flat):
    panel.imshow(filters[..., index], cmap="RdBu_r", vmin=-limit, vmax=limit)
    panel.axis("off")
plt.show()

# %% [markdown]
# ## Next
#
# - More epochs: `config.epochs = 5` and another `folder`. `configs/mnist_best.py` gets to 99.75 %.
# - `2_zoo_tour` shows the other networks, `3_cifar10` one that a TPU or GPU trains on photographs,
#   `7_reproduce` why the same run gives the same bits.
