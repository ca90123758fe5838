"""Files of weights give what the libraries that wrote them read from them."""

import json
import lzma
import re
import sys
import zipfile
from pathlib import Path

import h5py
import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from draw import draw_weight
from hostile_files import rebuild, saved

import flaxcnn
from flaxcnn.errors import UserError
from flaxcnn.weights import convert, export, find_layout, read_tensors
from flaxcnn.weights.convert import list_sources

PYTORCH = Path(__file__).parents[1] / "reference" / "golden" / "pytorch"
EXPECTED = json.loads((PYTORCH / "expected.json").read_text())


@pytest.mark.parametrize("file", EXPECTED)
def test_pytorch_s_files_are_what_torch_load_makes_of_them(file):
    tensors = read_tensors(PYTORCH / file)
    assert list(tensors) == list(EXPECTED[file])
    for name, expected in EXPECTED[file].items():
        tensor, values = tensors[name], expected["values"]
        assert (tensor.dtype.name, list(tensor.shape)) == (expected["type"], expected["shape"])
        if values and isinstance(values[0], str):  # hexadecimal floats; bits, not values
            values = np.array([float.fromhex(value) for value in values])
            if tensor.dtype.kind == "c":
                values = values.view(complex)
        np.testing.assert_array_equal(tensor.ravel().astype(np.asarray(values).dtype), values)
        assert tensor.flags.aligned


def test_tensors_that_share_a_storage_share_it_here():
    for file in ("zip_shared.pth", "stream_shared.pth"):
        tensors = read_tensors(PYTORCH / file)
        assert np.shares_memory(tensors["base"], tensors["transposed"])
        assert np.shares_memory(tensors["base"], tensors["tied.a"])
        assert not np.shares_memory(tensors["base"], tensors["channels_last"])


def test_an_archive_of_more_than_4_gb_has_its_sizes_elsewhere(tmp_path, monkeypatch):
    """The same zip64 fields that zipfile writes for a small archive with a low limit."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 8)
    value = np.arange(4, dtype=np.float32)
    (tmp_path / "a.pth").write_bytes(saved(rebuild(), records=[("a/data/0", value.tobytes())]))
    assert b"PK\6\6" in (tmp_path / "a.pth").read_bytes()
    read = read_tensors(tmp_path / "a.pth")
    np.testing.assert_array_equal(read["weight"], value.reshape(2, 2))


def test_half_precision_converts(tmp_path):
    tensors = draw("cifar_resnet20", "torchvision", depths=(1, 1))
    halves = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in tensors.items()}
    safetensors.numpy.save_file(halves, tmp_path / "half.safetensors")
    read = read_tensors(tmp_path / "half.safetensors")
    variables = convert("cifar_resnet20", read, "torchvision", depths=(1, 1))
    back = export("cifar_resnet20", variables, "torchvision", depths=(1, 1))
    for name, tensor in back.items():
        np.testing.assert_array_equal(tensor, halves[name].astype(np.float32))


def draw(name, layout, **kwargs):
    sources = list_sources(name, flaxcnn.create_model(name, **kwargs), layout)
    shapes = {n: shape for source in sources.values() for n, shape in source.their_shapes.items()}
    return {n: draw_weight(n, shape, int(np.prod(shape[1:])), 1.0) for n, shape in shapes.items()}


def test_safetensors_are_the_library_s(tmp_path):
    tensors = {
        "half": np.arange(6, dtype=np.float16).reshape(2, 3),
        "number": np.array(1.5),
        "none": np.zeros((0, 3), np.float32),
        "odd.bytes": np.array([True, False, True]),
        "bfloat16": np.array([1, -2], ml_dtypes.bfloat16),
        "ints": np.arange(3),
    }
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file(tensors, path, metadata={"format": "np"})
    packed = tmp_path / "a.safetensors.xz"
    packed.write_bytes(lzma.compress(path.read_bytes()))
    for file in (path, packed):
        read = read_tensors(file)
        assert set(read) == set(tensors)
        for name, tensor in tensors.items():
            assert read[name].dtype == tensor.dtype and read[name].flags.aligned
            np.testing.assert_array_equal(read[name], tensor)


def test_8_bit_weights_have_a_scale_for_each_channel_or_one(tmp_path):
    steps = np.arange(24, dtype=np.uint8).reshape(2, 3, 1, 4)
    tensors = {"a.weight_q": steps, "b.weight_q": steps, "b.bias": np.ones(2, np.float32)}
    tensors |= {"a.weight_scale": np.float32([0.5]), "a.weight_zero_point": np.int32([3])}
    tensors |= {"b.weight_scale": np.float32([0.5, 2]), "b.weight_zero_point": np.int32([3, 1])}
    safetensors.numpy.save_file(tensors, tmp_path / "q.safetensors")
    read = read_tensors(tmp_path / "q.safetensors")
    assert set(read) == {"a.weight", "b.weight", "b.bias"}
    np.testing.assert_array_equal(read["a.weight"], 0.5 * (np.arange(24.0) - 3).reshape(2, 3, 1, 4))
    np.testing.assert_array_equal(read["b.weight"][1], 2 * (steps[1] - 1.0))
    assert read["a.weight"].dtype == read["b.weight"].dtype == np.float32


def write_keras(path, layers, root="/"):
    """As Keras 1 and 2 write it: for each layer a group that lists its weights in order."""
    with h5py.File(path, "w") as file:
        group = file.require_group(root)
        group.attrs["layer_names"] = [name.encode() for name in ["input_1", *layers]]
        group.create_group("input_1").attrs["weight_names"] = np.zeros(0)
        for layer, weights in layers.items():
            here = group.create_group(layer)
            here.attrs["weight_names"] = [name.encode() for name in weights]
            for name, array in weights.items():
                here.create_dataset(name, array.shape, "f4")[...] = array


def write_named(path, tensors, rename, root="/"):
    """Writes tensors of the layout "keras" by other names of their layers and leaves."""
    layers: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in tensors.items():
        group, weight = rename(*name.split("/"))
        layers.setdefault(group, {})[weight] = tensor
    write_keras(path, layers, root)


def keras_1(layer, leaf):
    """The released VGG16: block1_conv1/block1_conv1_W_1:0."""
    return layer, f"{layer}_{leaf.replace('kernel', 'W').replace('bias', 'b')}_1:0"


def keras_2(layer, leaf):
    """The released MobileNet, and one made second in its session."""
    leaf = f"depthwise_{leaf}" if re.fullmatch(r"conv_dw_\d+", layer) else leaf
    return layer, f"{layer}_1/{leaf}:0"


def older_script(layer, leaf):
    """The released MobileNetV2: mobl1_conv_1_depthwise, bn1_conv_1_bn_depthwise, Logits."""
    leaf = f"depthwise_{leaf}" if layer.endswith("depthwise") else leaf
    layer = re.sub("expanded_conv", "block_0", layer)
    layer = re.sub(r"block_(\d+)_(\w+)_BN", r"bn\1_conv_\1_bn_\2", layer)
    layer = re.sub(r"block_(\d+)_(\w+)", r"mobl\1_conv_\1_\2", layer)
    layer = layer.replace("predictions", "Logits")
    return layer, f"{layer}/{leaf}:0"


def slashes(layer, leaf):
    """The released DenseNets, whose first layers are conv1/conv and conv1/bn."""
    layer = re.sub("conv1_(conv|bn)", r"conv1/\1", layer)
    return layer, f"{layer}/{leaf}:0"


def nested(layer, leaf):
    """`model.save` of Keras 3 of a network that is a layer of another."""
    return ("dense", f"dense/{leaf}") if layer == "predictions" else ("base", f"{layer}/{leaf}")


@pytest.mark.parametrize(
    ("name", "kwargs", "rename"),
    [
        ("vgg16", {"features": (2,) * 5, "hidden": (3, 3)}, keras_1),
        ("mobilenet_v1_0.25_128", {}, keras_2),
        ("densenet121", {"depths": (1, 1)}, slashes),
        ("mobilenet_v2_0.35_96", {"width": 0.1}, older_script),
    ],
)
def test_keras_files_convert_whatever_released_them(name, kwargs, rename, tmp_path):
    kwargs = {"num_classes": 3, **kwargs}
    tensors = draw(name, "keras", **kwargs)
    write_named(tmp_path / "a.h5", tensors, rename)
    read = read_tensors(tmp_path / "a.h5")
    assert find_layout(name, read, **kwargs) == "keras"
    jax.tree.map(
        np.testing.assert_array_equal,
        convert(name, read, "keras", **kwargs),
        convert(name, tensors, "keras", **kwargs),
    )


def test_a_whole_model_of_keras_has_its_base_s_names(tmp_path):
    tensors = {"conv1/kernel": np.ones((3, 3, 3, 2)), "conv1_bn/gamma": np.ones(2)}
    write_named(
        tmp_path / "a.h5", tensors | {"predictions/bias": np.ones(1)}, nested, "model_weights"
    )
    read = read_tensors(tmp_path / "a.h5")
    assert set(read) == {*tensors, "dense/bias"}
    np.testing.assert_array_equal(read["conv1/kernel"], tensors["conv1/kernel"])


def test_numbered_layers_begin_as_in_a_new_session(tmp_path):
    def rename(layer, leaf):
        kind, _, number = layer.rpartition("_n")
        return f"{kind}_{int(number) + 95}", f"{kind}_{int(number) + 95}_1/{leaf}:0"

    tensors = {f"conv2d_n{i}/kernel": np.full((1, 1, 1, 1), i, np.float32) for i in range(12)}
    tensors |= {f"batch_normalization_n{i}/beta": np.full(1, i, np.float32) for i in range(12)}
    write_named(tmp_path / "a.h5", tensors, rename)
    read = read_tensors(tmp_path / "a.h5")
    assert read["conv2d/kernel"] == 0 and read["batch_normalization/beta"] == 0
    assert all(read[f"conv2d_{i}/kernel"] == i for i in range(1, 12))
    assert all(read[f"batch_normalization_{i}/beta"] == i for i in range(1, 12))


def test_without_h5py_there_is_one_line(tmp_path, monkeypatch):
    write_keras(tmp_path / "a.h5", {})
    monkeypatch.setitem(sys.modules, "h5py", None)
    line = r"^weights: .*a\.h5: Keras' files need h5py, .*: pip install 'flaxcnn\[keras\]'$"
    with pytest.raises(UserError, match=line):
        read_tensors(tmp_path / "a.h5")


@pytest.mark.parametrize(
    ("name", "layouts"),
    [
        ("cifar_resnet20", ["torchvision"]),
        ("mobilenet_v2_0.35_96", ["torchvision", "timm", "keras", "tflite"]),
        pytest.param("vgg11", ["torchvision", "timm", "keras", "caffe"], marks=pytest.mark.zoo),
    ],
)
def test_the_layout_is_found_by_names(name, layouts):
    names = flaxcnn.create_model(name)
    for layout in layouts:
        sources = list_sources(name, names, layout).values()
        tensors = {
            n: np.zeros(shape) for source in sources for n, shape in source.their_shapes.items()
        }
        assert find_layout(name, tensors) == layout
        headless = dict(list(tensors.items())[:-2])
        assert find_layout(name, {"state_dict": headless}) == layout


def test_names_of_another_network_are_told_beside_its_own():
    with pytest.raises(UserError) as error:
        find_layout("cifar_resnet20", {"features.0.weight": 0, "features.0.bias": 0})
    assert str(error.value).startswith(
        "weights for cifar_resnet20: the names (features.0.weight, features.0.bias, ...) fit no "
        "layout: torchvision has "
    )
    with pytest.raises(UserError, match="fit no layout: it has none"):
        find_layout("lenet5_1998", {"a": 0})


def test_folded_weights_are_exported_only_of_a_folded_network():
    name, kwargs = "mobilenet_v2_0.35_96", {"width": 0.1, "num_classes": 3}
    tensors = draw(name, "tflite", **kwargs)
    variables = convert(name, tensors, "tflite", **kwargs)
    for back, tensor in export(name, variables, "tflite", **kwargs).items():
        np.testing.assert_array_equal(tensor, tensors[back])
    stem = {**variables["params"]["stem_bn"], **variables["batch_stats"]["stem_bn"]}
    epsilon = flaxcnn.create_model(name).epsilon
    np.testing.assert_allclose(stem["scale"] / np.sqrt(stem["var"] + epsilon), 1, rtol=1e-6)
    np.testing.assert_array_equal(stem["bias"], tensors["MobilenetV2/Conv.bias"])
    variables["batch_stats"]["stem_bn"]["mean"] += 1
    with pytest.raises(
        UserError, match=r"has no MobilenetV2/Conv\.mean, which must be 0: fold Batc"
    ):
        export(name, variables, "tflite", **kwargs)
