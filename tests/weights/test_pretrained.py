"""Where weights are found, what they want, and what they are refused for."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import flaxcnn
from flaxcnn.errors import UserError
from flaxcnn.models import create_model, list_models
from flaxcnn.weights import Preprocessing, convert, export, from_pretrained
from flaxcnn.weights import pretrained as module
from flaxcnn.weights.catalogue import Entry, list_entries
from flaxcnn.weights.convert import list_layouts, list_sources
from flaxcnn.weights.labels import class_names
from flaxcnn.weights.origins import ORIGINS, list_origins
from flaxcnn.weights.pretrained import adapt_kernel, load_variables, locate

GOLDEN = json.loads((Path(__file__).parents[1] / "reference" / "preprocessing.json").read_text())
SHORT = {"depths": (1, 1)}
CIFAR = {
    "input_size": [3, 32, 32],
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.2, 0.3],
    "crop_pct": 1.0,
    "crop_mode": "squash",
    "interpolation": "bicubic",
}


def draw(name, layout, **kwargs):
    """Tensors of the other library for the named network."""
    sources = list_sources(name, create_model(name, **kwargs), layout).values()
    shapes = {n: shape for source in sources for n, shape in source.their_shapes.items()}
    rng = np.random.default_rng(0)
    return {n: rng.random(shape, np.float32) for n, shape in shapes.items()}


@pytest.fixture(scope="module")
def tensors():
    return draw("cifar_resnet20", "torchvision", **SHORT)


@pytest.fixture
def file(tensors, tmp_path):
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def assert_same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


# Files


def test_a_file_loads_under_the_name_it_is_given(file, tensors):
    model, variables, preprocessing = from_pretrained(
        f"file:{file}", model_name="cifar_resnet20", **SHORT
    )
    assert model == create_model("cifar_resnet20", num_classes=10, **SHORT)
    assert_same(variables, convert("cifar_resnet20", tensors, "torchvision", **SHORT))
    assert preprocessing == Preprocessing(
        (32, 32), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 1.0
    )
    named = locate(f"{file},layout=torchvision", "cifar_resnet20")
    assert named.tensors is None and named == locate(str(file), "cifar_resnet20", **SHORT)
    with pytest.warns(UserWarning, match="for 10 classes, and num_classes is 3"):
        _, variables, _ = from_pretrained(
            str(file), num_classes=3, model_name="cifar_resnet20", **SHORT
        )
    assert variables["params"]["classifier"]["bias"].shape == (3,)


def test_the_number_of_classes_is_the_files(tmp_path):
    save_file(
        draw("cifar_resnet20", "torchvision", num_classes=7, **SHORT), tmp_path / "a.safetensors"
    )
    variables, located = load_variables(str(tmp_path / "a.safetensors"), "cifar_resnet20", **SHORT)
    assert located.kwargs == {"num_classes": 7} and located.class_names == ()
    assert variables["params"]["classifier"]["kernel"].shape == (32, 7)


@pytest.mark.parametrize(
    ("spec", "name", "line"),
    [
        ("{file}", "", r"model\.safetensors does not say which network it is for"),
        ("file:nowhere.pth", "resnet18", r"nowhere\.pth: no such file"),
        ("run:runs/a", "resnet18", r"run:runs/a: a run's weights are read by configs"),
        ("{file}", "resnet19", "unknown model 'resnet19'"),
        ("{file},layout=keras", "cifar_resnet20", "cifar_resnet20 and are not for it"),
        ("{folder}", "resnet18", r"has no config\.json"),
        ("resnet18.nobody", "", "no pretrained weights are called 'resnet18.nobody'"),
        ("nobody", "resnet18", "no pretrained weights are called 'resnet18.nobody'"),
        ("resnet50.a1_in1k", "resnet18", "weights of resnet50, and they load as resnet50 only"),
        ("https://localhost/a.pth", "", r"a\.pth does not say which network"),
    ],
)
def test_mistakes_are_one_line(spec, name, line, file):
    with pytest.raises(UserError, match=line) as error:
        locate(spec.format(file=file, folder=file.parent), name)
    assert "\n" not in str(error.value)


def test_create_model_hides_no_weights():
    with pytest.raises(UserError, match=r'from_pretrained\("resnet18\.TAG"\) loads them'):
        create_model("resnet18", pretrained=True)


# Equal shapes are no proof


@pytest.mark.parametrize(
    ("name", "layout", "own"),
    [
        ("mobilenet_v2", "tflite", "mobilenet_v2_1.00_224"),
        ("mobilenet_v2", "keras", "mobilenet_v2_1.00_224"),
        ("mobilenet_v2_1.00_96", "torchvision", "mobilenet_v2"),
        ("mobilenetv1_100", "keras", "mobilenet_v1_1.00_224"),
        ("resnet50", "keras", "resnet50_v1"),
        ("resnet101_v1", "timm", "resnet101"),
        ("squeezenet1_0", "caffe", "squeezenet1_0_caffe"),
        ("squeezenet1_0_caffe", "torchvision", "squeezenet1_0"),
        ("nasnetalarge", "keras", "nasnet_a_large"),
    ],
)
def test_weights_of_a_twin_load_under_their_own_name_only(name, layout, own, tmp_path):
    """Padding, strides, borders or epsilon differ (docs/deviations.md), shapes do not."""
    (tmp_path / "a.pth").touch()
    with pytest.raises(UserError, match=rf"a\.pth: .*{name} and are not.*: they are {own}'s$"):
        locate(f"{tmp_path / 'a.pth'},layout={layout}", name)
    assert locate(f"{tmp_path / 'a.pth'},layout={layout}", own).layout == layout


def test_origins_are_layouts_that_the_networks_have():
    used = set()
    for name in list_models():
        origins = list_origins(name)
        used |= {models for models, known in ORIGINS.items() if known is origins}
        assert set(origins) <= set(list_layouts(create_model(name))), name
        for origin in origins.values():
            create_model(name, **origin.kwargs)
    assert used == set(ORIGINS)


def test_the_catalogue_agrees_with_what_is_known_of_files():
    for entry in list_entries():
        origins = list_origins(entry.model)
        assert not origins or entry.layout in origins, entry.full_name
        Preprocessing.from_config(entry.preprocessing)


# Channels


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_first_kernels_for_other_channels_are_timms(channels):
    kernel = np.random.default_rng(0).random((2, 3, 1, 2), np.float32).transpose(2, 3, 1, 0)
    ours = adapt_kernel(kernel, channels).transpose(3, 2, 0, 1)
    np.testing.assert_allclose(ours.flatten(), GOLDEN["kernels"][str(channels)], rtol=1e-6)


def test_grey_images_through_a_summed_kernel(file):
    """A grey image alone gives what it gives three times, where mean and std are alike."""
    arguments = {"model_name": "cifar_resnet20", **SHORT}
    model, colour, _ = from_pretrained(str(file), **arguments)
    same, grey, preprocessing = from_pretrained(str(file), in_channels=1, **arguments)
    assert same == model and preprocessing.channels == 1
    x = np.random.default_rng(0).random((1, 8, 8, 1), np.float32)
    apply = jax.jit(lambda variables, x: model.apply(variables, x, train=False))
    np.testing.assert_allclose(apply(grey, x), apply(colour, x.repeat(3, -1)), rtol=2e-4)
    assert colour["params"].keys() == grey["params"].keys()


# Repositories

PUSHED = {  # by `flaxcnn push`, in timm's newer form
    "architecture": "resnet18",
    "num_classes": 10,
    "pretrained_cfg": CIFAR,
    "model_args": {"in_chans": 3, "depths": [1, 1]},
    "label_names": [f"label {i}" for i in range(10)],
    "flaxcnn": {"model": "cifar_resnet20", "layout": "torchvision"},
}
TIMMS = {"flaxcnn": None}
FLAT = {"architecture": "resnet18", "num_classes": 10, **CIFAR, "label_names": ["a"] * 10}


def test_a_folder_with_a_config(file):
    (file.parent / "config.json").write_text(json.dumps(PUSHED))
    model, variables, preprocessing = from_pretrained(str(file.parent))
    assert model == create_model("cifar_resnet20", num_classes=10, **SHORT)
    assert preprocessing.to_config() == CIFAR
    assert variables["params"]["classifier"]["bias"].shape == (10,)
    _, located = load_variables(str(file.parent))
    assert located.class_names == tuple(PUSHED["label_names"]) and located.tensors is None
    with pytest.warns(UserWarning, match="num_classes is 3"):
        _, located = load_variables(str(file.parent), num_classes=3)
    assert located.class_names == ()


def test_a_pushed_network_of_grey_images(tmp_path):
    """Its first kernel is of one channel, and the name's own network of three."""
    shape = (32, 32, 1)
    model = create_model("cifar_resnet20", **SHORT)
    variables = flaxcnn.init(model, jax.random.key(0), shape)
    tensors = export("cifar_resnet20", variables, "torchvision", input_shape=shape, **SHORT)
    save_file(tensors, tmp_path / "model.safetensors")
    grey = {**CIFAR, "input_size": [1, 32, 32], "mean": [0.5], "std": [0.2]}
    (tmp_path / "config.json").write_text(json.dumps(PUSHED | {"pretrained_cfg": grey}))
    _, found, preprocessing = from_pretrained(str(tmp_path))
    assert_same(found, variables)
    assert preprocessing.channels == 1


@pytest.mark.parametrize("flat", [True, False])
def test_either_form_of_timms_config(flat):
    config = FLAT if flat else PUSHED | {"flaxcnn": None, "model_args": {"in_chans": 3}}
    located = module._read_repository(config, "", "here")
    assert located.model_name == "resnet18" and not located.kwargs
    assert located.preprocessing.to_config() == CIFAR
    assert located.class_names == tuple(config["label_names"])
    plain = module._read_repository({"architecture": "resnet18"}, "", "here")
    assert plain.class_names[:2] == ("tench", "goldfish")


def test_a_repository_of_the_hub(file, monkeypatch):
    """Asked for by name and revision; the older name of the file where there is no newer."""
    (file.parent / "config.json").write_text(json.dumps(PUSHED))
    asked = []

    def fetch(source, file_name="", sha256=""):
        asked.append((source, file_name))
        if file_name == "model.safetensors":
            raise UserError("not there")
        return file if file_name == "pytorch_model.bin" else file.parent / file_name

    monkeypatch.setattr(module.hub, "fetch", fetch)
    located = locate("hf://user/cats@v1")
    names = ("config.json", "model.safetensors", "pytorch_model.bin")
    assert asked == [("hf://user/cats@v1", name) for name in names]
    assert (located.path, located.layout) == (file, "torchvision")
    with pytest.raises(UserError, match="hf://user/cats has weights of cifar_resnet20, and"):
        locate("hf://user/cats", "resnet18")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"architecture": None, **TIMMS}, "has no architecture"),
        ({"architecture": "vit_tiny", **TIMMS}, "timm's vit_tiny is not among the networks here"),
        ({"architecture": "xception", **TIMMS}, "timm's xception is not among"),
        ({**TIMMS, "model_args": {"stem_width": 3}}, "model_args that are unknown: stem_width"),
        ({"flaxcnn": {"model": "resnet19"}}, "unknown model 'resnet19'"),
        ({"model": {}, "data": {}}, r"is a run: flaxcnn\.load"),
        ({"pretrained_cfg": {"mean": "red"}}, "preprocessing cannot be read"),
    ],
)
def test_repositories_that_are_refused(change, line, file):
    (file.parent / "config.json").write_text(json.dumps(PUSHED | change))
    with pytest.raises(UserError, match=line) as error:
        locate(str(file.parent))
    assert "\n" not in str(error.value)


def test_timms_network_of_a_name_that_is_another_one_here():
    names = {"seresnext50_32x4d": "seresnext50_32x4d_timm", "legacy_senet154": "senet154"}
    for theirs, ours in names.items():
        config = FLAT | {"architecture": theirs}
        assert module._read_repository(config, "", "here").model_name == ours


# The catalogue


def test_a_tag_and_the_same_with_its_network(monkeypatch, file):
    entry = Entry(
        "cifar_resnet20",
        "nobody_in10",
        "cifar_resnet20",
        "torchvision",
        "hf://nobody/cifar@1",
        "a.safetensors",
        "12345678",
        preprocessing=CIFAR | {"channels": "BGR"},
        classes="",
    )

    def find_entry(name):
        if name != "cifar_resnet20.nobody_in10":
            raise UserError("unknown")
        return entry

    asked = []
    monkeypatch.setattr(module.catalogue, "find_entry", find_entry)
    monkeypatch.setattr(module.hub, "fetch", lambda *a: asked.append(a) or file)
    located = locate("nobody_in10", "cifar_resnet20")
    assert located == locate("cifar_resnet20.nobody_in10") and located.bgr
    assert asked == [("hf://nobody/cifar@1", "a.safetensors", "12345678")] * 2

    flipped, _ = load_variables(located, **SHORT)  # the file's first kernel wants blue first
    plain, _ = load_variables(dataclasses.replace(located, bgr=False), **SHORT)
    kernels = [x["params"].pop("stem_conv")["kernel"] for x in (flipped, plain)]
    np.testing.assert_array_equal(kernels[0], kernels[1][:, :, ::-1])
    assert_same(flipped, plain)


def test_arguments_that_keras_weights_need(monkeypatch, file):
    monkeypatch.setattr(module.hub, "fetch", lambda *_: file)
    located = locate("resnet50_v1.keras_in1k")
    assert located.kwargs == {"epsilon": 1.001e-5} and located.bgr
    assert located.preprocessing.interpolation == "bilinear"


def test_1001_classes_have_a_background_first():
    names = class_names("imagenet1k")
    assert module._name_classes(names, 1001) == ("background", *names)
    assert module._name_classes(names, 1000) == names
    assert module._name_classes(names, 10) == ()
