"""Weights for one number of classes, converted for another one or for none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from networks import REFERENCES
from safetensors.numpy import save_file

from flaxcnn.errors import UserError
from flaxcnn.models import create_model, variant
from flaxcnn.weights import convert, from_pretrained
from flaxcnn.weights.convert import _find_other_head, list_sources

SHORT = {"depths": (1, 1)}


def draw(name, layout, **kwargs):
    """Tensors of the other library for the named network."""
    sources = list_sources(name, create_model(name, **kwargs), layout).values()
    shapes = {n: shape for source in sources for n, shape in source.their_shapes.items()}
    rng = np.random.default_rng(0)
    return {n: rng.random(shape, np.float32) for n, shape in shapes.items()}


def flatten(variables):
    return traverse_util.flatten_dict(variables, sep="/")


@pytest.fixture(scope="module")
def resnet20():
    return draw("cifar_resnet20", "torchvision", **SHORT)


def test_another_number_of_classes_makes_a_new_head(resnet20):
    """The rest is the weights', the head what `init` gives from the same key."""
    model = create_model("cifar_resnet20", num_classes=7, **SHORT)
    plain = flatten(convert("cifar_resnet20", resnet20, "torchvision", **SHORT))
    with pytest.warns(UserWarning) as reported:
        found = flatten(
            convert(
                "cifar_resnet20",
                resnet20,
                "torchvision",
                num_classes=7,
                key=jax.random.key(3),
                **SHORT,
            )
        )
    assert [str(warning.message) for warning in reported] == [
        "cifar_resnet20: the weights are for 10 classes, and num_classes is 7: "
        "classifier/bias, classifier/kernel are new"
    ]
    assert reported[0].filename == __file__
    images = jnp.zeros((1, 32, 32, 3))
    fresh = jax.jit(lambda key: model.init(key, images, train=False))(jax.random.key(3))
    head = {"params/classifier/kernel", "params/classifier/bias"}
    assert found.keys() == plain.keys() == flatten(fresh).keys()
    for path, value in found.items():
        np.testing.assert_array_equal(value, flatten(fresh)[path] if path in head else plain[path])
    assert found["params/classifier/kernel"].shape == (32, 7)
    assert found["params/classifier/kernel"].std() > 0


def test_a_new_head_is_only_made_if_asked_for(resnet20):
    fewer = resnet20 | {"linear.weight": np.zeros((7, 32), np.float32)}
    with pytest.raises(
        UserError, match=r": linear\.weight has shape \(7, 32\), and not \(10, 32\)$"
    ):
        convert("cifar_resnet20", fewer, "torchvision", **SHORT)


@pytest.mark.parametrize(
    ("change", "problems"),
    [
        ({"conv1.weight": (16, 1, 3, 3)}, r"conv1\.weight has shape \(16, 1, 3, 3\), and not "),
        (
            {"linear.weight": (10, 64)},
            r"linear\.bias has shape .*; linear\.weight has shape \(10, 64\), and not \(7, 32\)$",
        ),
        (
            {"linear.bias": (11,)},
            r"linear\.bias has shape \(11,\), and not \(7,\); linear\.weight has .*$",
        ),
        ({"other": (7,)}, "unexpected other$"),
    ],
)
def test_everything_else_is_still_a_mistake(resnet20, change, problems):
    """A clash besides the head; a head of other features, or of two numbers of classes."""
    tensors = resnet20 | {name: np.zeros(shape, np.float32) for name, shape in change.items()}
    with pytest.raises(UserError, match=rf"^weights for cifar_resnet20 in .*: {problems}"):
        convert("cifar_resnet20", tensors, "torchvision", num_classes=7, **SHORT)


@pytest.mark.parametrize(
    "kwargs", [{"num_classes": 0}, {"features_only": True, "out_indices": (0,)}]
)
def test_without_a_head_its_tensors_are_left_out(resnet20, kwargs):
    plain = flatten(convert("cifar_resnet20", resnet20, "torchvision", **SHORT))
    found = flatten(convert("cifar_resnet20", resnet20, "torchvision", **SHORT, **kwargs))
    assert ("params/stage2_block1/conv1/kernel" in found) == ("num_classes" in kwargs)
    assert not any("classifier" in path for path in found)
    for path, value in found.items():
        np.testing.assert_array_equal(value, plain[path])
    with pytest.raises(UserError, match=": unexpected nobody$"):
        convert(
            "cifar_resnet20", resnet20 | {"nobody": np.zeros(1)}, "torchvision", **SHORT, **kwargs
        )


def test_a_change_of_the_tensors_does_not_reach_the_variables(resnet20):
    tensors = {name: tensor.copy() for name, tensor in resnet20.items()}
    found = convert("cifar_resnet20", tensors, "torchvision", **SHORT)
    tensors["bn1.weight"] += 1
    np.testing.assert_array_equal(found["params"]["stem_bn"]["scale"], resnet20["bn1.weight"])


NARROW = {"width": 1 / 16}


def test_without_a_head_auxiliary_ones_are_left_out():
    tensors = draw("googlenet_bn_tv_aux", "torchvision", **NARROW)
    found = convert("googlenet", tensors, "torchvision", num_classes=0, **NARROW)  # no warning
    assert not any("auxiliary" in path for path in found["params"])


@pytest.mark.parametrize(
    ("name", "layout", "kwargs", "modules"),
    [
        ("googlenet_bn_tv_aux", "torchvision", NARROW, {"aux1.fc2", "aux2.fc2", "fc"}),
        ("squeezenet1_1", "torchvision", {}, {"classifier.1"}),
        ("vgg11", "timm", {}, {"head.fc"}),
    ],
)
def test_convolutions_and_auxiliary_classifiers_are_heads_too(name, layout, kwargs, modules):
    found, classes = find_head(name, layout, **kwargs)
    assert classes == 1000
    assert {their_name.rpartition(".")[0] for their_name in found.values()} == modules
    assert len(found) == 2 * len(modules)


@pytest.mark.zoo
@pytest.mark.parametrize("reference", REFERENCES, ids=lambda r: r.path.stem)
def test_every_network_s_head_is_its_classifiers(reference):
    found, classes = find_head(reference.model, reference.layout, **reference.kwargs)
    assert len(found) >= 2 and all(path[-2].endswith("classifier") for path in found)
    assert classes == variant(reference.model).kwargs["num_classes"]


def find_head(name, layout, **kwargs):
    """Our path and their name of what changes for 12 classes, and the number of theirs."""
    theirs = list_sources(name, create_model(name, **kwargs), layout)
    shapes = {n: shape for source in theirs.values() for n, shape in source.their_shapes.items()}
    model = create_model(name, num_classes=12, **kwargs)
    ours = list_sources(name, model, layout)
    paths, classes = _find_other_head(name, model, layout, ours, shapes)
    return {path: theirs[path].name for path in paths}, classes


# VGG-16 with two maps in each stage: its hidden layers are part of what Keras calls the top.
SMALL_VGG = {"features": (2,) * 5, "hidden": (3,), "map_side": 1}


@pytest.mark.parametrize(
    ("name", "kwargs", "head"),
    [
        ("vgg16", SMALL_VGG, ("fc1", "classifier")),
        ("cifar_resnet20", SHORT, ("classifier",)),
    ],
)
def test_weights_without_a_head_get_a_new_one(tmp_path, name, kwargs, head):
    """As Keras' files called "notop"; what is left of one is not taken for it."""
    layout = "keras" if name == "vgg16" else "torchvision"
    whole = draw(name, layout, **kwargs)
    sources = list_sources(name, create_model(name, **kwargs), layout)
    top = {source.name for path, source in sources.items() if path[1] in head}
    assert len(top) == 2 * len(head)
    notop = {n: tensor for n, tensor in whole.items() if n not in top}
    expected = flatten(convert(name, whole, layout, **kwargs))
    with pytest.warns(UserWarning) as reported:
        found = flatten(convert(name, notop, layout, num_classes=2, **kwargs))
    leaves = sorted(f"{module}/{leaf}" for module in head for leaf in ("kernel", "bias"))
    line = f"{name}: the weights have no head: {', '.join(leaves)} are new"
    assert [str(warning.message) for warning in reported] == [line]
    for path, value in found.items():
        if path.split("/")[1] in head:
            assert value.shape != expected[path].shape or not np.array_equal(value, expected[path])
        else:
            np.testing.assert_array_equal(value, expected[path])
    with pytest.raises(UserError, match="missing"):
        convert(name, notop, layout, **kwargs)
    classes = variant(name).kwargs["num_classes"]
    for removed in (sorted(top)[0], sorted(notop)[0]):  # a part of the head, or more than the head
        source = notop if removed in notop else whole
        fewer = {n: tensor for n, tensor in source.items() if n != removed}
        with pytest.raises(UserError, match=f"missing {removed}"):
            convert(name, fewer, layout, num_classes=classes, **kwargs)
    save_file(notop, tmp_path / "notop.safetensors")
    spec = f"file:{tmp_path}/notop.safetensors,layout={layout}"
    with pytest.raises(UserError, match="notop.safetensors has no head: give num_classes"):
        from_pretrained(spec, model_name=name, **kwargs)
