"""Weights in other libraries' names: what they published comes back, and what they make of ours."""

import json
import struct

import jax
import numpy as np
import pytest

import flaxcnn
from flaxcnn.errors import UserError
from flaxcnn.export import export_safetensors
from flaxcnn.weights import convert, read_tensors


def test_a_published_file_comes_back_bit_for_bit(shared, tmp_path):
    """Weights of CIFAR-10's ResNet-20, read and written again."""
    published = read_tensors(shared / "data" / "weights" / "cifar10_resnet20.safetensors")
    variables = convert("cifar_resnet20", published, "torchvision")
    file = tmp_path / "resnet20.safetensors"
    export_safetensors(file, "cifar_resnet20", variables, "torchvision")
    written = read_tensors(file)
    weights = {name: x for name, x in published.items() if "num_batches_tracked" not in name}
    assert written.keys() == weights.keys()
    for name, x in weights.items():
        assert written[name].dtype == x.dtype and np.array_equal(written[name], x), name
    (length,) = struct.unpack("<Q", file.read_bytes()[:8])
    metadata = json.loads(file.read_bytes()[8 : 8 + length])["__metadata__"]
    assert metadata == {"format": "pt", "model": "cifar_resnet20", "layout": "torchvision"}


def test_our_own_layout_has_our_paths(tmp_path):
    model = flaxcnn.create_model("digits_cnn", num_classes=3)
    variables = flaxcnn.init(model, jax.random.key(0), (8, 8, 1))
    file = tmp_path / "digits.safetensors"
    export_safetensors(file, "digits_cnn", variables, num_classes=3)
    tensors = read_tensors(file)
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    paths = {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}
    assert tensors.keys() == paths.keys() and "params/conv1/kernel" in paths
    assert all(np.array_equal(tensors[path], x) for path, x in paths.items())


def test_a_library_without_the_network_is_refused(tmp_path):
    """Equal shapes are no proof: padding and epsilon of Keras' MobileNetV2 differ."""
    for name, layout, known in [
        ("mobilenet_v2_1.00_224", "timm", "flaxcnn"),
        ("cifar_resnet20", "timm", "flaxcnn, torchvision"),
        ("digits_cnn", "torchvision", "flaxcnn"),
    ]:
        with pytest.raises(UserError, match=f"^{layout} has no {name}: there is layout {known}$"):
            export_safetensors(tmp_path / "x.safetensors", name, {}, layout)
    with pytest.raises(
        UserError, match="layout is 'keras', and must be flaxcnn, torchvision, timm"
    ):
        export_safetensors(tmp_path / "x.safetensors", "resnet18", {}, "keras")
    assert not list(tmp_path.iterdir())


@pytest.mark.zoo
@pytest.mark.parametrize(
    ("name", "layout"),
    [
        *((name, "torchvision") for name in ("resnet18", "mobilenet_v2", "densenet121")),
        *((name, "torchvision") for name in ("googlenet", "squeezenet1_1", "inception_v3")),
        *((name, "timm") for name in ("resnetv2_50", "seresnet50_v1", "mobilenetv1_100")),
        *((name, "timm") for name in ("mobilenetv2_050", "darknet53")),
    ],
)
def test_their_library_computes_the_same(name, layout, tmp_path):
    torch = pytest.importorskip("torch")
    models = pytest.importorskip("torchvision" if layout == "torchvision" else "timm")
    from onnx_families import draw_variables
    from safetensors.torch import load_file

    from flaxcnn.models import variant
    from flaxcnn.weights.catalogue import timm_name

    shape = variant(name).input_shape
    model, variables = draw_variables(name)
    export_safetensors(tmp_path / "x.safetensors", name, variables, layout)
    if layout == "torchvision":
        make = getattr(models.models, name)
        auxiliary = name in ("googlenet", "inception_v3")
        aux = {"init_weights": False, "aux_logits": False} if auxiliary else {}
        theirs = make(weights=None, **aux)
    else:
        theirs = models.create_model(timm_name(name), pretrained=False)
    theirs.load_state_dict(load_file(tmp_path / "x.safetensors"))
    images = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    with torch.inference_mode():
        expected = theirs.eval()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    actual = np.asarray(jax.jit(lambda x: model.apply(variables, x, train=False))(images))
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
