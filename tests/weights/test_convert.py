"""Conversion both ways, and what is said when tensors do not fit."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draw import draw_weight
from networks import REFERENCES

import flaxcnn
from flaxcnn.errors import UserError
from flaxcnn.models import variant
from flaxcnn.weights import convert, export
from flaxcnn.weights.convert import list_sources
from flaxcnn.weights.rules import CONVENTIONS

WRAPPERS = CONVENTIONS["torchvision"].prefixes
# The smallest network of each class and layout: the rules are written per class.
EACH = {}
for _reference in sorted(REFERENCES, key=lambda r: -variant(r.model).params):
    EACH[variant(_reference.model).network, _reference.layout] = _reference


def draw(name, layout, **kwargs):
    """Tensors of the other library for the named network."""
    model = flaxcnn.create_model(name, **kwargs)
    return {
        their_name: draw_weight(their_name, shape, int(np.prod(shape[1:])), 1.0)
        for source in list_sources(name, model, layout).values()
        for their_name, shape in source.their_shapes.items()
    }


@pytest.fixture(scope="module")
def resnet18():
    return draw("resnet18", "torchvision", num_classes=10)


@pytest.mark.parametrize("reference", EACH.values(), ids=lambda r: r.path.stem)
def test_round_trip_keeps_every_bit(reference):
    """Ours, their names, ours again."""
    if variant(reference.model).params > 60e6:
        pytest.skip("too large: its own test converts it with narrower dense layers")
    name, layout = reference.model, reference.layout
    kwargs = {"num_classes": 10, **reference.kwargs}
    variables = convert(name, draw(name, layout, **kwargs), layout, **kwargs)
    tensors = export(name, variables, layout, **kwargs)
    assert not any(n.startswith(WRAPPERS) for n in tensors)  # which `convert` would take off
    again = convert(name, tensors, layout, **kwargs)
    assert jax.tree.structure(again) == jax.tree.structure(variables)
    for ours, back in zip(jax.tree.leaves(variables), jax.tree.leaves(again), strict=True):
        assert ours.dtype == back.dtype == np.float32
        assert np.array_equal(ours, back)
    assert len({id(leaf) for leaf in tensors.values()}) == len(tensors)


def test_tensors_have_pytorch_s_names_and_shapes(resnet18):
    assert resnet18["conv1.weight"].shape == (64, 3, 7, 7)
    assert resnet18["layer2.0.downsample.0.weight"].shape == (128, 64, 1, 1)
    assert resnet18["layer4.1.bn2.running_var"].shape == (512,)
    assert resnet18["fc.weight"].shape == (10, 512)


def test_every_problem_is_told_at_once(resnet18):
    damaged = {name: value for name, value in resnet18.items() if name != "fc.bias"}
    damaged["conv1.weight"] = np.zeros((64, 1, 7, 7), np.float32)
    damaged["head.weight"] = np.zeros(3, np.float32)
    with pytest.raises(UserError) as error:
        convert("resnet18", damaged, "torchvision", num_classes=10)
    assert str(error.value) == (
        "weights for resnet18 in layout torchvision: missing fc.bias; unexpected head.weight; "
        "conv1.weight has shape (64, 1, 7, 7), and not (64, 3, 7, 7)"
    )


def test_counters_of_batches_are_no_weights(resnet18):
    counters = {"bn1.num_batches_tracked": np.zeros((), np.int64)}
    found = convert("resnet18", resnet18 | counters, "torchvision", num_classes=10)
    expected = convert("resnet18", resnet18, "torchvision", num_classes=10)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_variables_of_another_network_are_refused(resnet18):
    variables = convert("resnet18", resnet18, "torchvision", num_classes=10)
    with pytest.raises(UserError) as error:
        export("resnet18", variables, "torchvision")
    assert str(error.value) == (
        "variables for resnet18: params/classifier/bias has shape (10,), and not (1000,); "
        "params/classifier/kernel has shape (512, 10), and not (512, 1000)"
    )


def test_an_unknown_layout_is_told_with_the_known_ones(resnet18):
    with pytest.raises(UserError, match="resnet18 has no weights in layout 'mxnet': it has torchv"):
        convert("resnet18", resnet18, "mxnet")
    with pytest.raises(UserError, match="lenet5_1998 has no weights in layout 'timm': it has none"):
        convert("lenet5_1998", {}, "timm")


def test_a_broken_import_is_not_a_network_without_weights(monkeypatch):
    monkeypatch.delitem(sys.modules, "flaxcnn.weights.names.nin", raising=False)
    monkeypatch.setitem(sys.modules, "flaxcnn.models.nin", None)
    with pytest.raises(ModuleNotFoundError, match=r"flaxcnn\.models\.nin"):
        convert("nin_imagenet", {}, "caffe")


def test_converted_variables_are_what_the_network_takes(resnet18):
    model = flaxcnn.create_model("resnet18", num_classes=10)
    variables = flaxcnn.weights.convert("resnet18", resnet18, "torchvision", num_classes=10)
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    logits = jax.eval_shape(lambda v, x: model.apply(v, x, train=False), variables, images)
    assert logits.shape == (2, 10)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, shapes)
