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
# # Your own photographs: a network that already knows what things look like
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/flaxcnn/flaxcnn/blob/main/colab/4_transfer_learning.ipynb)
#
# **What you will see:** a network that learned from 1.3 million photographs of ImageNet, taught to
# tell your own classes apart from some hundred photographs, in minutes: first a new last layer
# on its features, then its last block. Unless you give your own, they are of ants and bees.
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
# ## The photographs
#
# A folder with a folder for each class, named as the class is called: some 50 photographs of each
# will do, 200 are better. From Google Drive: `drive.mount("/content/drive")` of `google.colab`,
# and `PHOTOS = "/content/drive/My Drive/pets"`. Some are kept aside for validation and for the
# test, unless there are folders `train`, `validation` and `test` with the classes in them.
#
# Without one of your own: 397 of ants and bees, from PyTorch's tutorial (47 MB).

# %%
import urllib.request
import zipfile
from pathlib import Path

PHOTOS = os.environ.get("FLAXCNN_PHOTOS", "")  # your folder

if not PHOTOS:
    PHOTOS = "hymenoptera_data"
    if not Path(PHOTOS).exists():
        address = "https://download.pytorch.org/tutorial/hymenoptera_data.zip"
        file, _ = urllib.request.urlretrieve(address)
        zipfile.ZipFile(file).extractall()
files = sorted(path for path in Path(PHOTOS).rglob("*") if path.suffix.lower() in (".jpg", ".png"))
print(len(files), "photographs")

# %%
import matplotlib.pyplot as plt
from PIL import Image as Photo

figure, axes = plt.subplots(2, 5, figsize=(12, 5))
for panel, file in zip(axes.flat, files[:: max(1, len(files) // 10)], strict=False):
    panel.imshow(Photo.open(file).convert("RGB"))
    panel.set_title(file.parent.name, fontsize=9)
    panel.axis("off")
plt.show()

# %% [markdown]
# ## The weights
#
# MobileNetV2, 2.2 million parameters without its last layer (Sandler 2018), as Keras has published
# it (14 MB). Weights that are downloaded are verified, and never run as a program.

# %%
from flaxcnn.training import load_config

WEIGHTS = os.environ.get("FLAXCNN_WEIGHTS", "keras_in1k")

config = load_config("cats_dogs_mobilenet_v2")
config.model.weights = WEIGHTS
config.data.source = f"folder:{PHOTOS}"
if QUICK:
    config.data.batch_size, config.epochs = 8, 2
    config.stages = (*config.stages[:1], ("last", config.stages[1][1] | {"epochs": 1}))

# %% [markdown]
# ## Train
#
# Two stages, each a run of its own. In the first all but the last layer is frozen. So what comes
# before it, the features, is the same in every epoch: it is computed once for each photograph,
# which takes most of the time, and kept in `~/.cache/flaxcnn/features`. In the second the last
# block learns too, slowly.
#
# Stop the cell whenever you like: run again, it resumes where it was.

# %%
import flaxcnn

folder = "runs/photographs"
result = flaxcnn.train(config, folder)
if result is None:
    raise RuntimeError("stopped; run this cell again to resume")
for name, stage in result["stages"].items():
    print(f"{name}: right on {stage['accuracy']:.1%} of {stage['images']} other photographs")

# %%
from IPython.display import Image, display

display(Image(f"{folder}/head/curves.png"))

# %% [markdown]
# ## What it confuses

# %%
display(Image(f"{folder}/last/confusion_matrix.png", width=500))

# %%
display(Image(f"{folder}/last/predictions.png"))

# %% [markdown]
# ## Without any training of a network
#
# The same features, and scikit-learn's logistic regression on them: a "linear probe". What it
# reaches is what ImageNet's features already know of your classes.

# %%
from flaxcnn.training import linear_probe

probe = linear_probe(config)
print({split: f"{accuracy:.1%}" for split, accuracy in probe.accuracy.items()})

# %% [markdown]
# ## Ask it
#
# Any photograph gets one of your classes, whatever it shows: the network knows no others.

# %%
predictor = flaxcnn.load(folder)
for file, probabilities in predictor.predict(files[:3]):
    print(Path(file).name, predictor.task.describe(probabilities, 2))

# %% [markdown]
# ## Next
#
# - More of the network: `("last", {"optimizer.freeze": "stem|stage[1-4]|.*_bn", ...})`; or images
#   that are mirrored and moved, with `data.augment`, which features cannot be.
# - Another network: `config.model.name = "resnet50"` with `config.model.weights = "a1_in1k"` and
#   `config.stages = ()`. docs/transfer.md has more.
# - `flaxcnn push` gives what you have trained to others, and timm's users can load it.
