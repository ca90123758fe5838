"""onnxruntime computes from the file what jax computes of the network."""

import importlib.util
import json
import sys
import tarfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import flaxcnn
from flaxcnn.errors import UserError
from flaxcnn.export import export_onnx
from flaxcnn.export.onnx import evaluate
from flaxcnn.layers import BatchNorm, Conv, ConvTranspose, avg_pool, conv, max_pool
from flaxcnn.layers.plain import in_plain_lax

needs_onnx = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("jax2onnx", "onnxruntime"))),
    reason="needs pip install 'flaxcnn[onnx]'",
)


class Net(nn.Module):
    """What is replaced on the way, in odd sizes and with padding of different sides."""

    @nn.compact
    def __call__(self, x, *, train):
        x = Conv(6, 3, 2, padding=((0, 1), (2, 1)), name="conv")(x)
        x = nn.relu(BatchNorm(not train, name="bn")(x))
        y = max_pool(x, (3, 2), (2, 1), ((1, 0), (0, 1)))
        z = avg_pool(x, (3, 2), (2, 1), ((1, 0), (0, 1)), count_include_pad=False)
        x = ConvTranspose(4, 3, 2, name="up")(jnp.concatenate([y, z], -1))
        rows = jnp.unstack(x, axis=1)
        x = jnp.stack(rows[::-1], axis=2)
        x = nn.Dense(5, name="dense")(x.reshape(x.shape[0], -1))
        distances = (
            x[:, None] - self.param("centres", nn.initializers.normal(1), (3, 5))[None]
        ) ** 2
        return -distances.sum(-1)


@pytest.fixture(scope="module")
def network():
    """(function of images uint8 [N, 11, 10, 2], images)."""
    model = Net()
    images = np.random.default_rng(0).integers(0, 256, (3, 11, 10, 2)).astype(np.uint8)
    init = jax.jit(model.init, static_argnames="train")
    variables = init(jax.random.key(0), images / np.float32(255), train=False)

    def function(x):
        x = x.astype(jnp.float32) / 255
        return jax.nn.softmax(model.apply(variables, x, train=False))

    return function, images


def test_equations_are_computed_as_they_are_given_to_the_converter(network):
    """Broadcasting put off, constants computed, pools and borders replaced: in jax alone."""
    function, images = network
    with in_plain_lax():
        program = jax.make_jaxpr(lambda x: function(x))(images)
    (actual,) = jax.jit(lambda x: evaluate(program.jaxpr, program.consts, [x]))(images)
    np.testing.assert_allclose(actual, jax.jit(function)(images), rtol=1e-4, atol=1e-6)


def test_without_jax2onnx_one_line_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(UserError, match=r"ONNX needs jax2onnx: pip install 'flaxcnn\[onnx\]'$"):
        export_onnx(tmp_path / "x.onnx", jnp.mean, (2, 2, 1))


@needs_onnx
@pytest.mark.zoo
def test_any_number_of_images(network, tmp_path):
    import onnx
    import onnxruntime

    function, images = network
    file = tmp_path / "network.onnx"
    export_onnx(file, function, images.shape[1:], {"class_names": ["a", "b", "c"]})
    onnx.checker.check_model(onnx.load(file), full_check=True)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (given,), (answer,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape[1:]) == ("images", "tensor(uint8)", [11, 10, 2])
    assert answer.name == "probabilities"
    names = session.get_modelmeta().custom_metadata_map["class_names"]
    assert json.loads(names) == ["a", "b", "c"]
    for count in (1, 3):
        (actual,) = session.run(None, {"images": images[:count]})
        np.testing.assert_allclose(actual, function(images[:count]), rtol=1e-4, atol=1e-6)


@needs_onnx
@pytest.mark.zoo
def test_what_cannot_be_converted_is_named(tmp_path):
    def function(images):
        volumes = images.reshape(-1, 4, 2, 2, 1).astype(jnp.float32)
        return conv(volumes, jnp.ones((2, 2, 2, 1, 1))).mean((1, 2, 3))

    with pytest.raises(UserError, match="cannot convert the network: Unsupported conv layouts"):
        export_onnx(tmp_path / "x.onnx", function, (4, 4, 1))
    assert not list(tmp_path.iterdir())


@needs_onnx
@pytest.mark.zoo
@pytest.mark.parametrize("name", ["digits_cnn", "cifar_resnet20", "mobilenet_v2", "fcn8s"])
def test_families_on_real_images(name, shared, tmp_path):
    """All: `python tests/reference/onnx_families.py`, whose table is in docs/export.md."""
    from onnx_families import COUNT, compare

    row = compare(name, tmp_path)
    assert row["difference"] < 1e-5
    assert row["agree"] == COUNT or name == "fcn8s"  # of which every pixel is an answer


@needs_onnx
@pytest.mark.zoo
@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("mobilenet_v2_1.0_224_q8.safetensors", "mobilenet_v2_1.00_224"),
        ("squeezenet_v1.0_deepcompression.safetensors.xz", "squeezenet1_0_caffe"),
    ],
)
def test_published_weights_name_the_same_classes(file, name, shared, tmp_path):
    """The 48 photographs, read, normalised and named as by `flaxcnn predict`."""
    import onnxruntime

    with tarfile.open(shared / "data" / "imagenet-samples.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    photographs = sorted(tmp_path.rglob("*.jp*g"))
    assert len(photographs) == 48
    predictor = flaxcnn.load(shared / "data" / "weights" / file, name)
    images = np.stack([predictor.read(photograph) for photograph in photographs])
    export_onnx(tmp_path / "network.onnx", predictor.function, predictor.image_shape)
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx")
    (actual,) = session.run(None, {"images": images})
    expected = predictor(images)
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    assert np.array_equal(actual.argmax(-1), expected.argmax(-1))
