# ---
# jupyter:
#   accelerator: GPU
#   colab:
#     gpuType: T4
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
# # Where things are: boxes around blood cells, and a class for every pixel
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/flaxcnn/flaxcnn/blob/main/colab/6_detection_segmentation.ipynb)
#
# **What you will see:** a small YOLOv3 that learns to find red cells, white cells and platelets on
# photographs of blood, how it is judged (mean average precision), what it misses, and its boxes on
# a file; then a U-Net that gives each pixel of an image its class, on shapes that are drawn here.
#
# **Runtime:** a T4 GPU or a v5e-1 TPU, both free when there is one. On the CPU it takes some twenty
# minutes. *Runtime > Run all*.

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
# ## What measures
#
# The figures of detection are those of pycocotools, the extra `flaxcnn[detection]`. A TPU runtime
# lacks it.

# %%
if importlib.util.find_spec("pycocotools") is None:
    install("pycocotools>=2.0.8")

# %% [markdown]
# ## The data
#
# BCCD: 205, 87 and 72 photographs of blood for training, validation and test, 640 x 480 pixels,
# with a box around each of some 4,900 cells. tensorflow-datasets downloads it (8 MB) and prepares
# it once, with TensorFlow. That happens in a process of its own, so that TensorFlow takes no memory
# here and no accelerator.
#
# Or your own: a folder with images and a file of boxes for each split, `train.json`, `val.json` and
# `test.json`, as COCO has them (docs/detection.md; `voc:` and `yolo:` are read as well). From
# Google Drive: `drive.mount("/content/drive")` of `google.colab`, and
# `BOXES = "/content/drive/My Drive/cells"`. That needs no TensorFlow.


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


# %%
BOXES = os.environ.get("FLAXCNN_BOXES", "")  # your folder

if not BOXES:
    prepare("bccd")
source = f"coco:{BOXES}" if BOXES else "tfds:bccd"

# %% [markdown]
# What is in it: each object has a class, and a box of left, top, right and bottom in pixels.

# %%
import matplotlib.pyplot as plt
import numpy as np

from flaxcnn.data.sources import load_dataset
from flaxcnn.tasks.detection.pictures import draw_objects

dataset = load_dataset(source, image_size=(480, 640), resize="pad")
for name, split in dataset.splits.items():
    print(f"{name}: {len(split)} images")
images, targets = dataset.splits["train"].load(np.arange(4))
figure, axes = plt.subplots(2, 2, figsize=(11, 8.5), layout="constrained")
for i, axis in enumerate(axes.flat):
    valid = targets.valid[i]  # targets have room for the most objects of an image
    boxes, labels = targets.boxes[i][valid], targets.labels[i][valid]
    names = [dataset.class_names[label] for label in labels]
    axis.imshow(draw_objects(images[i], boxes, labels, names))
    axis.axis("off")
plt.show()

# %% [markdown]
# ## Train
#
# The settings are those of `configs/bccd_yolov3_tiny.py`: YOLOv3's tiny form (Redmon and Farhadi
# 2018) with two maps, on MobileNetV2 that has learned from ImageNet (14 MB, published by Keras). In
# a terminal this is one command:
#
#     flaxcnn train bccd_yolov3_tiny --config.data.source=tfds:bccd \
#         --config.model.weights=keras_in1k,into=backbone
#
# Each cell of a map looks for objects whose middle lies in it, with three priors: boxes of usual
# sizes, which it moves and stretches. Each box has a score for "there is an object" and one for
# each class. Of boxes that overlap, suppression leaves the surest.
#
# Stop the cell whenever you like: run again, it resumes where it was.

# %%
import flaxcnn
from flaxcnn.training import load_config

WEIGHTS = os.environ.get("FLAXCNN_WEIGHTS", "keras_in1k")

config = load_config("bccd_yolov3_tiny")
config.data.source = source
config.model.weights = f"{WEIGHTS},into=backbone"
if QUICK:
    config.model.kwargs.backbone = "mobilenet_v1_0.25_128"
    config.epochs, config.steps_per_call = 3, 2
    config.data.image_size, config.data.augment = (96, 128), (("flip",),)

cells = "runs/cells"
result = flaxcnn.train(config, cells)
if result is None:
    raise RuntimeError("stopped; run this cell again to resume")

# %% [markdown]
# ## How good it is
#
# A detection is right if its class is, and if it overlaps an object by IoU 0.5 or more: the area of
# what both cover over the area of what either covers. From the surest detection to the least sure,
# the share that is right (precision) falls and the share of objects found (recall) rises; the area
# under this curve is the average precision, AP, of a class, and mAP the mean over classes. COCO's
# own AP is also a mean over IoUs from 0.5 to 0.95. `flaxcnn evaluate runs/cells` prints the same.

# %%
predictor = flaxcnn.load(cells)
print(f"mAP at IoU 0.5 on {result['images']} images it has not seen: {result['mean_ap']:.3f}\n")
print(predictor.task.format(result["report"]))

# %%
from IPython.display import Image, display

display(Image(f"{cells}/precision_recall.png", width=550))

# %% [markdown]
# The images with the most mistakes. Look twice at what counts as wrong: of red cells that lie in a
# crowd or at a border, the annotations leave many out.

# %%
display(Image(f"{cells}/detections.png"))

# %% [markdown]
# ## Find cells in a file
#
# Any image file will do; boxes are in its own pixels. In a terminal:
# `flaxcnn predict --workdir runs/cells --out drawn FILE_OR_FOLDER`, which takes videos as well.

# %%
from PIL import Image as Photo

photographs, _ = dataset.splits["test"].load(np.arange(1))
Photo.fromarray(photographs[0]).save("blood.png")

((file, answer),) = predictor.predict(["blood.png"])
for entry in predictor.task.describe(answer, 5):
    print(predictor.task.format_entry(entry))
Photo.fromarray(predictor.task.annotate(photographs[0], answer)).save("blood_drawn.png")
display(Image("blood_drawn.png"))

# %% [markdown]
# ## A class for every pixel
#
# Segmentation learns from masks: for each image another of the same size, whose pixels are numbers
# of classes. Here both are drawn: discs, squares and triangles of any colour on a background of
# another, with noise, in a folder as yours would be: `images/` and `masks/`, and `classes.json`
# with the names. Some images are kept aside for validation and for the test.

# %%
import json
from pathlib import Path

import cv2

NAMES = ["background", "disc", "square", "triangle"]
shapes = Path("shapes")
for kind in ("images", "masks"):
    (shapes / kind).mkdir(parents=True, exist_ok=True)
(shapes / "classes.json").write_text(json.dumps({"classes": NAMES}))

rng = np.random.default_rng(0)
for number in range(40 if QUICK else 1000):
    image = np.full((64, 64, 3), rng.integers(40, 216, 3), np.uint8)
    mask = np.zeros((64, 64), np.uint8)
    for shape in rng.integers(1, 4, rng.integers(1, 3)):
        x, y = (int(place) for place in rng.integers(10, 54, 2))
        r, color = int(rng.integers(9, 15)), rng.integers(0, 256, 3).tolist()
        corners = [(x - r, y - r), (x + r, y - r), (x + r, y + r), (x - r, y + r)]
        if NAMES[shape] == "triangle":
            corners = [(x, y - r), (x + r, y + r), (x - r, y + r)]
        for picture, value in ((image, color), (mask, int(shape))):
            if NAMES[shape] == "disc":
                cv2.circle(picture, (x, y), r, value, -1)
            else:
                cv2.fillPoly(picture, [np.array(corners)], value)
    image = np.clip(image + rng.normal(0, 15, image.shape), 0, 255).astype(np.uint8)
    Photo.fromarray(image).save(shapes / "images" / f"{number:04}.png")
    Photo.fromarray(mask).save(shapes / "masks" / f"{number:04}.png")

# %% [markdown]
# ## Train a U-Net
#
# U-Net (Ronneberger et al. 2015) makes maps smaller step by step, to see more, and larger again,
# with the maps of the way down beside them, to be exact: here a narrow one. Others are listed by
# `flaxcnn list models 'fcn*'`, and `configs/camvid_fcn8s.py` is one for photographs of streets
# (docs/segmentation.md).

# %%
from flaxcnn.training import Config, DataConfig, ModelConfig, OptimizerConfig, TaskConfig

features = (8, 16) if QUICK else (16, 32, 64, 128)
config = Config(
    model=ModelConfig("unet_bn", {"features": features}),
    task=TaskConfig("segmentation"),
    data=DataConfig(
        source=f"masks:{shapes}",
        batch_size=8,
        augment=(("flip",),),
    ),
    optimizer=OptimizerConfig("adam", learning_rate=2e-3),
    epochs=2 if QUICK else 15,
)
result = flaxcnn.train(config, "runs/shapes")
if result is None:
    raise RuntimeError("stopped; run this cell again to resume")
print(f"mean IoU {result['mean_iou']:.3f} on {result['images']} images it has not seen")
for row in result["report"]["classes"]:
    print(f"{row['name']:>10}: IoU {row['iou']:.3f}")

# %% [markdown]
# The worst images: the image, its mask, and what was predicted.

# %%
display(Image("runs/shapes/predictions.png"))

# %% [markdown]
# And over a file, as `flaxcnn predict --out` does it:

# %%
predictor = flaxcnn.load("runs/shapes")
((file, answer),) = predictor.predict([shapes / "images" / "0000.png"])
overlay = predictor.task.annotate(np.asarray(Photo.open(file)), answer)
display(Photo.fromarray(overlay).resize((384, 384), Photo.Resampling.NEAREST))

# %% [markdown]
# ## Next
#
# - More cells found: larger images with `config.data.image_size = (384, 512)` (and priors twice as
#   large, `config.task.kwargs.priors`), more epochs, or all of the backbone trained.
# - Other detectors on the same backbone: `configs/studies/bccd_detectors.py` has YOLOv1, YOLOv2 and
#   SSD; docs/detection.md says what each needs.
# - `flaxcnn report runs/cells` puts all about the run into one HTML file, `runs/cells/report.html`.
