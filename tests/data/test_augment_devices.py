"""Every operation makes the same bits on one device as on eight.

Positions, mixing across devices, a choice by class, another size; what else the operations do is
done to each image alike on any device, and compared with `pytest -m zoo`.
"""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flaxcnn.data.augment import make_augment
from flaxcnn.data.augment.pipeline import MAKERS, SCENES

SHAPE = (16, 20, 3)
COUNT = 32
KEY, STEP = jax.random.key(3), np.int32(5)
IMAGES = np.random.default_rng(0).integers(0, 256, (COUNT, *SHAPE), dtype=np.uint8)
LABELS = (np.arange(COUNT) * 7 % 10).astype(np.int32)
# Every name, with settings that do something, in few policies: compiling takes most of the time.
POLICIES = {
    "flips": [("alternating_flip",), ("flip",), ("vertical_flip",), ("crop", 3), ("mixup", 0.3)],
    "crops": [("random_resized_crop",), ("rotate", 30)],
    "shifts": [("translate", 0.2, "edge"), ("shear", 20)],
    "zooms": [
        ("zoom", 0.8, 1.2, 0.5),
        ("affine", {"degrees": 15, "zooms": [0.9, 1.1], "p": 0.7}),
    ],
    "bends": [("perspective", 0.4), ("elastic", 2, 8)],
    "colours": [
        ("brightness", 0.5),
        ("contrast", 0.5),
        ("saturation", 0.5),
        ("hue", 0.2),
        ("gamma", 0.5),
        ("grayscale",),
        ("posterize", 4),
        ("solarize", 0.5),
        ("cutmix",),
    ],
    "pixels": [
        ("equalize",),
        ("autocontrast",),
        ("sharpness", 0.8),
        ("invert",),
        ("gaussian_blur", 0.1, 1.0),
        ("gaussian_noise", 0.1),
        ("random_erasing", 0.7),
        ("cutout", 6),
    ],
    "policies": [("randaugment", 1, 9), ("trivialaugment",), ("autoaugment", "cifar10")],
    "resize": [
        ("progressive_resize", ((0, 14, 12),)),
        ("resize", 12, 10),
        ("crop", 3),
    ],
    "mixing": [("mixup_or_cutmix",)],
}


def assert_same_bits(actual, expected):
    """XLA of jaxlib 0.7 joins mixup's product and sum to one rounding on some devices: 1 ulp."""
    ulp = 2.0**-23 if jax.__version_info__ < (0, 8) else 0.0
    np.testing.assert_allclose(actual, expected, rtol=0, atol=ulp)


CLASSES = {"crops": (3, 8)}  # the classes whose images change
ON_PMAP = ("flips", "crops", "resize")


def test_every_name_is_tried():
    assert {entry[0] for policy in POLICIES.values() for entry in policy} == set(MAKERS) - set(
        SCENES
    )


def compile_as_a_user(function, *arguments):
    """With LLVM's optimizations, which other tests leave out (conftest.py): bits depend on them."""
    lowered = function.lower(*arguments)
    return lowered.compile(compiler_options={"xla_backend_optimization_level": 3})


@functools.cache
def augment_on(count, name):
    """The named policy's bits on this many devices."""
    mesh = Mesh(np.array(jax.devices()[:count]), ("data",), axis_types=(AxisType.Auto,))
    whole, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
    augment = jax.jit(
        make_augment(POLICIES[name], SHAPE, 2, classes=CLASSES.get(name, ())),
        in_shardings=(whole, whole, split, split),
        out_shardings=split,
    )
    arguments = (KEY, STEP, IMAGES, LABELS)
    return jax.device_get(compile_as_a_user(augment, *arguments)(*arguments))


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in ON_PMAP else [pytest.mark.zoo]) for n in POLICIES],
)
def test_one_and_eight_devices_make_the_same_bits(name):
    one, eight = augment_on(1, name), augment_on(8, name)
    assert one[0].dtype == np.float32 and np.isfinite(one[0]).all()
    assert one[0].min() > -1e-6 and one[0].max() < 1 + 1e-6
    if one[0].shape == IMAGES.shape:
        changes = np.isin(LABELS, CLASSES.get(name, LABELS))
        moved = np.abs(one[0] - IMAGES / 255).max((1, 2, 3))
        assert (moved[changes] > 1e-3).mean() > 0.9 and (moved[~changes] < 1e-6).all()
    jax.tree.map(assert_same_bits, one, eight)


@pytest.mark.parametrize("name", ON_PMAP)
def test_pmap_makes_the_bits_of_one_device(name):
    one = augment_on(1, name)
    augment = make_augment(POLICIES[name], SHAPE, 2, "data", classes=CLASSES.get(name, ()))
    mapped = jax.pmap(augment, "data", in_axes=(None, None, 0, 0))
    arguments = (KEY, STEP, IMAGES.reshape(8, -1, *SHAPE), LABELS.reshape(8, -1))
    parts = compile_as_a_user(mapped, *arguments)(*arguments)
    parts = jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), parts)
    jax.tree.map(assert_same_bits, one, parts)
