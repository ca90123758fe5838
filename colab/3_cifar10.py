# ---
# jupyter:
#   accelerator: TPU
#   colab:
#     gpuType: V5E1
#     provenance: []
#   jupytext:
#     notebook_metadata_filter: accelerator,colab,kaggle
#     text_representation:
#       extension: .py
#       format_name: percent
#   kaggle:
#     accelerator: tpuV5e8
#     isInternetEnabled: true
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # CIFAR-10 to 94 % on a TPU or GPU
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/flaxcnn/flaxcnn/blob/main/colab/3_cifar10.ipynb)
# [![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)](https://kaggle.com/kernels/welcome?src=https://github.com/flaxcnn/flaxcnn/blob/main/colab/3_cifar10.ipynb)
#
# **What you will see:** airbench94 (Jordan 2024), a network of 1,971,352 parameters, learn to tell
# ten kinds of small photographs apart in twelve epochs. In float32 on a CPU it got 94.14 % of the
# test images right (mean of three seeds, standard deviation 0.25). Then what it sees in training,
# its curves, what it confuses, and its mistakes.
#
# **Runtime:** TPU v5e-1 (free) or a GPU such as the T4 (free): *Runtime > Change runtime type*. The
# same notebook runs on Kaggle's TPU v5e-8, on all eight chips. On a CPU it takes over two hours,
# so there it stops.

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

# %%
if jax.default_backend() == "cpu" and not QUICK:
    raise RuntimeError("this runtime has no accelerator: Runtime > Change runtime type > v5e-1 TPU")

# %% [markdown]
# ## If the session dies
#
# A session's disk goes with the session. With `USE_DRIVE = True` each checkpoint is copied to your
# Google Drive, beside the training (Colab asks for your permission), and in a new session *Run all*
# resumes the run at the last that was copied. It takes some 100 MB there.

# %%
USE_DRIVE = False

if USE_DRIVE:
    from google.colab import drive

    drive.mount("/content/drive")

# %% [markdown]
# ## The data
#
# tensorflow-datasets downloads CIFAR-10 (163 MB) and prepares it once, with TensorFlow. That
# happens in a process of its own, so that TensorFlow takes no memory here and no accelerator. A
# TPU runtime has no TensorFlow: it is put into /tmp, beside the runtime's packages, in a minute.


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


prepare("cifar10")

# %% [markdown]
# ## What the network sees
#
# Each epoch it sees every image once, moved by up to two pixels, and mirrored in every other epoch.

# %%
import cv2
import tensorflow_datasets as tfds
from IPython.display import Image, display

from flaxcnn.training import load_config

config = load_config("cifar10_speed")
files = []
for example in tfds.data_source("cifar10", split="train[:4]"):
    files.append(f"cifar10_{len(files)}.png")
    cv2.imwrite(files[-1], example["image"][..., ::-1])
command = [sys.executable, "-m", "flaxcnn", "visualize", "augment", "--config", "cifar10_speed"]
subprocess.run(
    [*command, "--image", *files, "--out", "augmentation.png"],
    env=os.environ | {"JAX_PLATFORMS": "cpu"},  # the accelerator belongs to this process
    check=True,
)
display(Image("augmentation.png", width=700))

# %% [markdown]
# ## Train
#
# `configs/cifar10_speed.py`, computing in bfloat16, which TPUs and GPUs are made for; parameters
# stay float32. All 50,000 images are trained on, so nothing is measured before the end.

# %%
import time

import flaxcnn

folder = "runs/cifar10"
config.precision = "bfloat16"
config.run.mirror = "/content/drive/My Drive/flaxcnn/cifar10" if USE_DRIVE else ""
if QUICK:
    config.epochs, config.data.batch_size, config.data.views = 3, 100, ()
    config.precision, config.model.kwargs.widths = "float32", (8, 16, 16)
    classes = tfds.builder("cifar10").info.features["label"].names
    config.data.balance.subsample.update({name: 0.02 for name in classes})

started = time.perf_counter()
result = flaxcnn.train(config, folder)
if result is None:
    raise RuntimeError("stopped; run this cell again to resume")
print(f"{result['accuracy']:.2%} of the test images are right")
print(f"{time.perf_counter() - started:.0f} seconds for this cell, with reading and compiling")

# %%
display(Image(f"{folder}/curves.png"))

# %% [markdown]
# ## What it confuses
#
# Cats and dogs, mostly. So do people, at 32x32 pixels.

# %%
display(Image(f"{folder}/confusion_matrix.png", width=700))

# %%
display(Image(f"{folder}/predictions.png"))

# %% [markdown]
# ## Next
#
# - Another seed: `config.seed = 1` and another `folder`. The mean of several is what counts.
# - `config.model.name = "airbench96"` with more epochs: a larger network of the same paper.
# - `7_reproduce` shows that a run which is killed and resumed ends with the same bits.
