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
# # Look inside: what a network sees, and what it goes by
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/flaxcnn/flaxcnn/blob/main/colab/5_look_inside.ipynb)
#
# **What you will see:** a small network that learns MNIST's digits, taken apart: its layers and
# what they cost, how far each sees, filters, feature maps, the pixels that a decision depends on,
# what single units look for, and how large values and gradients are in every layer, at the start
# and after training. Then MobileNetV2 on a photograph, and all of the run in one HTML file.
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

# %% [markdown]
# ## A network to look into
#
# The settings are those of `configs/mnist_speed.py`, with one pass over the data. The checkpoint
# with the best validation accuracy is loaded again, beside some digits it has never seen.

# %%
import io

import numpy as np
from IPython.display import HTML, Image, display

import flaxcnn
from flaxcnn import analysis
from flaxcnn.analysis import plots
from flaxcnn.training import load_config
from flaxcnn.training.inference import load_run

config = load_config("mnist_speed")
config.epochs = 1
config.data.validation = 0.05
if QUICK:
    config.data.balance.subsample.update({str(digit): 0.04 for digit in range(10)})

folder = "runs/look_inside"
result = flaxcnn.train(config, folder)
if result is None:
    raise RuntimeError("stopped; run this cell again to resume")
print(f"right on {result['accuracy']:.2%} of the digits it has never seen")

# %%
import tensorflow_datasets as tfds

run = load_run(folder)
model, variables, facts = run.model, run.variables, run.facts
examples = list(tfds.data_source("mnist", split="test[:300]"))
digits = np.stack([example["image"] for example in examples])
labels = np.array([example["label"] for example in examples])
images = np.asarray(run.preprocessing(digits))  # what the network takes


def show(figure):
    """Display a matplotlib Figure as it is, without pyplot."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    display(Image(file.getvalue()))


# %% [markdown]
# ## Its layers
#
# Counted from the traced program, without computing anything: outputs, parameters, multiply-adds,
# and the memory of a batch. `flaxcnn summary RUN` prints the same.

# %%
found = analysis.summary(model, facts.image_shape, batch=64, name="the digits' network")
print(analysis.format_text(found))

# %% [markdown]
# ## How far it sees
#
# The receptive field of a layer is the square of pixels that one of its values depends on. In
# networks for photographs it grows beyond the image, fastest where strides come early.

# %%
networks = ["vgg16", "resnet50", "mobilenet_v2"]
deep = [analysis.summary(flaxcnn.create_model(name), (224, 224, 3), name=name) for name in networks]
show(analysis.draw_field(*deep))

# %% [markdown]
# ## Filters and feature maps
#
# The filters of the first layer: dark is negative, bright positive. Then what some layers make of
# one digit. Later maps are smaller and mean more.

# %%
name, kernel = analysis.first_filters(model, variables, facts.image_shape)
show(plots.draw_filters(np.asarray(kernel), title=name))

# %%
maps = analysis.activations(model, variables, images[:1], ["conv*"])
for name, values in maps.items():
    if "bn" not in name:
        show(plots.draw_features(np.asarray(values[0]), 32, name, digits[0]))

# %% [markdown]
# ## Which pixels it goes by
#
# Seven answers to "why this class?" for three digits. They do not agree, and not all of them are to
# be trusted: guided backpropagation and deconvolution draw the same picture when the classifier is
# replaced by chance (Adebayo et al. 2018; `docs/looking_inside.md` has the figures).

# %%
chosen = [int(np.flatnonzero(labels == digit)[0]) for digit in (2, 4, 7)]
windows = {"occlusion": {"window": 7, "stride": 2}}
attributions = {
    name: np.asarray(method(model, variables, images[chosen], **windows.get(name, {})))
    for name, method in analysis.ATTRIBUTION_METHODS.items()
}
show(plots.draw_attributions(digits[chosen], attributions, [str(labels[i]) for i in chosen]))

# %% [markdown]
# ## What single units look for
#
# For each unit the nine digits that excite it most, cut to what it sees, and what a deconvnet makes
# of its activation there (Zeiler and Fergus 2014): the strokes that count.

# %%
layer, units = "conv2", (0, 1, 2, 3)
patches = [analysis.find_patches(model, variables, images, layer, unit) for unit in units]
titles = [f"{layer}, unit {unit}" for unit in units]
show(plots.draw_patches(patches, facts.mean, facts.std, titles))

# %% [markdown]
# ## Signals
#
# Mean and deviation of every layer's outputs, and the norms of the loss' gradient: of the digits'
# network before and after training.


# %%
def command(*arguments):
    """Run `flaxcnn ...` as in a terminal, on the CPU: an accelerator is this process' own."""
    words = [sys.executable, "-m", "flaxcnn", *arguments]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    finished = subprocess.run(words, env=environment, capture_output=True, text=True)
    if finished.returncode:
        raise RuntimeError(finished.stderr)
    print(finished.stdout)


command("visualize", "signals", folder, "--out", "signals.png")
display(Image("signals.png", width=900))

# %% [markdown]
# And of perceptrons of ten layers that have learned nothing yet. Behind each sigmoid, whose slope
# is at most 1/4, the gradient is smaller by a constant factor: it vanishes. With ReLUs it keeps its
# size where the kernels are as He et al. (2015) draw them, vanishes with smaller ones, and explodes
# with larger ones (here twice as large).

# %%
starts = {
    "sigmoid, Glorot": ("sigmoid", "glorot_uniform", 1),
    "tanh, Glorot": ("tanh", "glorot_uniform", 1),
    "ReLU, He": ("relu", "he_uniform", 1),
    "ReLU, -0.05 to 0.05": ("relu", "random_uniform", 1),
    "ReLU, twice He's": ("relu", "he_uniform", 2),
}
measured = {}
for name, (activation, kernel_init, factor) in starts.items():
    perceptron = flaxcnn.create_model(
        "mnist_mlp_512", hidden=(100,) * 10, activation=activation, kernel_init=kernel_init
    )
    drawn = flaxcnn.init(perceptron, jax.random.key(0), (28, 28, 1))
    drawn = jax.tree.map(lambda leaf, factor=factor: factor * leaf, drawn)  # biases are zero
    measured[name] = analysis.signals(perceptron, drawn, images[:64], labels[:64])
show(analysis.draw_signals(measured))

# %% [markdown]
# ## A network for photographs
#
# MobileNetV2 with published weights (14 MB), which are downloaded once and verified by their hash.
# Without a network this part is skipped. The photograph comes with scikit-learn.

# %%
from sklearn.datasets import load_sample_image

from flaxcnn.errors import UserError
from flaxcnn.weights.preprocessing import Preprocessing

FILE = os.environ.get("FLAXCNN_WEIGHTS", "")  # MobileNetV2's in a file, where there is no network
try:
    if FILE:
        mobile, weights, preprocessing = flaxcnn.from_pretrained(
            FILE,
            model_name="mobilenet_v2_1.00_224",
            preprocessing=Preprocessing((224, 224), (0.5,) * 3, (0.5,) * 3),
        )
    else:
        mobile, weights, preprocessing = flaxcnn.from_pretrained("mobilenet_v2.tv_in1k")
except UserError as error:
    mobile, weights, preprocessing = None, None, None
    print(f"skipped: {error}")

# %%
if mobile is not None:
    photograph = preprocessing.fit(load_sample_image("flower.jpg"))[None]
    inputs = np.asarray(preprocessing(photograph))
    blocks = [f"stage{number}" for number in (1, 2, 3)]
    for name, values in analysis.activations(mobile, weights, inputs, blocks).items():
        show(plots.draw_features(np.asarray(values[0]), 16, name, photograph[0]))

# %%
if mobile is not None:
    methods = ["saliency", "guided_backpropagation", "grad_cam"]
    attributions = {
        name: np.asarray(analysis.ATTRIBUTION_METHODS[name](mobile, weights, inputs))
        for name in methods
    }
    show(plots.draw_attributions(photograph, attributions))

# %% [markdown]
# ## All of it in one file
#
# `flaxcnn train` ends with a report: one HTML file that needs no network, with curves, the
# confusion matrix of each epoch, the worst mistakes, filters, feature maps, config and environment.
# Download `runs/look_inside/report.html` from the file browser on the left to keep it.

# %%
import html

command("report", folder)
with open(f"{folder}/report.html", encoding="utf-8") as file:
    page = html.escape(file.read())
frame = f'<iframe srcdoc="{page}" width="100%" height="700" frameborder="0"></iframe>'
display(HTML(f"<div>{frame}</div>"))  # of a bare iframe IPython warns

# %% [markdown]
# ## Next
#
# - Another digit, layer or unit: change the numbers above.
# - On the command line: `flaxcnn visualize --help` lists the pictures, `docs/looking_inside.md`
#   explains them, and `docs/studies/initializer.md` trains what "Signals" only starts.
# - `1_first_network` trains this network to the end, `2_zoo_tour` shows the other networks.
