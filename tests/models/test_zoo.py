"""What holds for every network of the zoo: size, stages, input, interface. Nothing is computed."""

import csv
import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from counting import count_multiply_adds, count_values
from networks import DEEP, REFERENCES
from test_variant import SIZES as TEXTBOOK

from flaxcnn.errors import UserError
from flaxcnn.models import create_model, list_models, variant
from flaxcnn.models._network import Network, feature_info

with open(Path(__file__).with_name("zoo.csv")) as file:
    TABLE = {row["name"]: row for row in csv.DictReader(file)}  # the reference table
    # Two rows differ from that table. Its `googlenet`, the paper's form, is `googlenet_lrn` here,
    # as the plain name is torchvision's network. The multiply-adds of `googlenet_aux` are those of
    # evaluation, as for the other networks with auxiliary classifiers, 8,372,224 fewer.

ZOO = [n for n in list_models() if variant(n).task == "classification" and n not in TEXTBOOK]
SMALLEST = {}  # network of each class: what is written once per class is tested once
for _name in sorted(ZOO, key=lambda name: -variant(name).params):
    SMALLEST[variant(_name).network] = _name
each_class = pytest.mark.parametrize("name", sorted(SMALLEST.values()))
# Fewer of the same blocks, for what does not depend on their number: tracing takes the time.
SHORT = {
    "darknet53": {"depths": (1,) * 5},
    "densenet121": {"depths": (2, 3, 2, 2)},
    "inception_resnet_v1": {"depths": (1, 1, 2)},
    "inception_v4": {"depths": (1, 1, 1)},
    "nasnet_a_mobile_slim": {"cells": 1},
    "resnetv2_50": {"depths": (1, 1, 1, 1)},
    "senet154_timm": {"depths": (1, 2, 1, 1)},
}
each_row = pytest.mark.parametrize("name", sorted(TABLE))


def describe(name):
    """What a network is, whatever the images: other resolutions have names of their own."""
    v = variant(name)
    return f"{v.network.__name__} {dict(v.kwargs)}"


FIRST = set({describe(name): name for name in reversed(ZOO)}.values())
FIRST -= {"nasnetalarge", "nasnet_a_large_slim"}  # of the size of nasnet_a_large
# Built as inception_resnet_v1, nasnet_a_mobile and densenet121 are.
FIRST -= {"inception_resnet_v2", "inception_resnet_v2_paper", "nasnet_a_large"}
FIRST -= {"densenet161", "densenet169", "densenet264"}
# Other families take the depths of ResNet's, of which each is tried.
FIRST -= {
    name for name in DEEP if re.match(r"(resnetv2_1|resnet1\d\d_?v|seresnet1|seresnext101)", name)
}
each_network = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in FIRST else [pytest.mark.zoo]) for n in ZOO]
)

# Networks without a public implementation, each with a forward pass in NumPy in the file named.
IN_NUMPY = {
    "airbench94": "test_airbench",
    "airbench95": "test_airbench",
    "airbench96": "test_airbench",
    "alexnet_2012_2group": "test_alexnet",
    "alexnet_ungrouped": "test_alexnet",
    "bad_design_840m": "test_bad_design",
    "darknet19": "test_darknet",
    "inception_resnet_v1": "test_inception_resnet",
    "inception_resnet_v2_paper": "test_inception_resnet",
    "nin_cifar10": "test_nin",
    "nin_imagenet": "test_nin",
    "pyramid_cnn": "test_bad_design",
    "vgg11_lrn": "test_vgg",
    "vgg16_c": "test_vgg",
    "zfnet": "test_zfnet",
    "zfnet_b": "test_zfnet",
    "cifar_resnet110": "test_resnet",
    "cifar_resnet20": "test_resnet",
    "cifar_resnet32": "test_resnet",
    "cifar_resnet44": "test_resnet",
    "cifar_resnet56": "test_resnet",
    "nasnet_a_large_slim": "test_nasnet",
    "nasnet_a_mobile_slim": "test_nasnet",
    "plain18": "test_resnet",
    "plain34": "test_resnet",
    "resnet34_a": "test_resnet",
    "resnet34_c": "test_resnet",
    "squeezenet1_0_caffe": "test_squeezenet",
    "squeezenet1_0_complex_bypass": "test_squeezenet",
    "squeezenet1_0_simple_bypass": "test_squeezenet",
    "bn_inception": "test_bn_inception",
    "googlenet_aux": "test_googlenet",
    "googlenet_lrn": "test_googlenet",
    "se_bn_inception": "test_bn_inception",
}


@functools.cache
def trace(name):
    """Shapes of the logits and the variables, and the jaxpr of a forward pass."""
    v, model = variant(name), create_model(name)
    images = jax.ShapeDtypeStruct((1, *v.input_shape), jnp.float32)
    initialize = functools.partial(model.init_with_output, train=False)
    jaxpr, shapes = jax.make_jaxpr(initialize, return_shape=True)(jax.random.key(0), images)
    logits, variables = shapes
    # `init` runs auxiliary classifiers, evaluation does not; airbench's first kernel begins as a
    # constant, whose products are not counted.
    if getattr(model, "auxiliary", False) or name.startswith("airbench"):
        apply = functools.partial(model.apply, train=False)
        jaxpr = jax.make_jaxpr(apply)(variables, images)
    return logits, variables, jaxpr


@each_network
def test_size(name):
    v = variant(name)
    logits, variables, jaxpr = trace(name)
    assert set(variables) <= {"params", "batch_stats"}
    assert count_values(variables["params"]) == v.params
    assert count_values(variables.get("batch_stats", {})) == v.statistics
    assert count_multiply_adds(jaxpr.jaxpr) == v.macs
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert (logits.shape, logits.dtype) == ((1, v.kwargs["num_classes"]), jnp.float32)


@each_row
def test_reference_table(name):
    """Every classifier of the reference table can be made, and has the size given there."""
    v, row = variant(name), TABLE[name]
    assert v.params == int(row["params"])
    assert v.statistics == int(row["statistics"])
    assert v.macs == int(row["macs"])
    assert v.input_shape == tuple(map(int, row["input"].split("x")))


def test_every_network_is_compared_with_an_independent_implementation():
    # Variants for other resolutions are the same network.
    compared = {
        describe(name) for name in {reference.model for reference in REFERENCES} | set(IN_NUMPY)
    }
    assert [name for name in ZOO if describe(name) not in compared] == []
    for file in IN_NUMPY.values():
        assert Path(__file__).with_name(f"{file}.py").is_file()


@each_class
def test_stages(name):
    v, model = variant(name), create_model(name, **SHORT.get(name, {}))
    assert isinstance(model, Network)
    stages = feature_info(model, v.input_shape)
    assert len(stages) >= 3
    strides = [stage.stride for stage in stages]
    assert strides == sorted(strides) and all(s & (s - 1) == 0 for s in strides)
    images = jax.ShapeDtypeStruct((1, *v.input_shape), jnp.float32)
    chosen = model.clone(features_only=True, out_indices=(0, -2))
    (maps, variables), (_, everything) = (
        jax.eval_shape(lambda x, m=m: m.init_with_output(jax.random.key(0), x, train=False), images)
        for m in (chosen, model)
    )
    assert [m.shape[-1] for m in maps] == [stages[0].channels, stages[-2].channels]
    assert set(variables["params"]) < set(everything["params"])  # no head, and no last stage


@each_class
def test_pooled_features_and_low_precision(name):
    v = variant(name)
    model = create_model(name, num_classes=0, dtype=jnp.bfloat16, **SHORT.get(name, {}))
    images = jax.ShapeDtypeStruct((2, *v.input_shape), jnp.float32)
    features, variables = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x, train=False), images
    )
    assert features.ndim == 2 and features.dtype == jnp.float32
    assert "classifier" not in variables["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@each_class
def test_arrays_that_are_no_images_are_refused(name):
    model = create_model(name)
    with pytest.raises(UserError, match=r"(?m)needs images \[N, H, W, C\], got .*\(28, 28\)$"):
        jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), jnp.zeros((28, 28)))
