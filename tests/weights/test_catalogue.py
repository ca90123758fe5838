"""The table of pretrained weights: what it says holds for the networks, and can be found."""

import json
import re
from collections import Counter

import pytest

from flaxcnn.commands.list import list_pretrained
from flaxcnn.errors import UserError
from flaxcnn.models import create_model, variant
from flaxcnn.weights.catalogue import (
    PERMISSIVE,
    find_entry,
    list_entries,
    model_of_timm,
    timm_name,
)
from flaxcnn.weights.convert import _family, list_sources
from flaxcnn.weights.labels import class_names, wordnet_ids

ENTRIES = list_entries()


def test_every_entry_names_a_network_and_a_layout_that_it_has():
    for entry in ENTRIES:
        model = create_model(entry.model, **entry.kwargs)
        assert entry.layout in _family(model).LAYOUTS, entry
        assert model.num_classes == len(class_names(entry.classes)) == 1000
        assert find_entry(entry.full_name) == entry
        if entry.size:  # float32, and a little for names
            weights = 4 * (variant(entry.model).params + variant(entry.model).statistics)
            auxiliary = 1.6 if entry.model in ("googlenet", "inception_v3") else 1.0
            if entry.model == "googlenet":
                auxiliary = 2.0
            assert weights * 0.99 < entry.size < weights * 1.02 * auxiliary + 2**17, entry


def test_every_entry_is_complete():
    names = Counter(entry.full_name for entry in ENTRIES)
    assert max(names.values()) == 1
    for entry in ENTRIES:
        if entry.source.startswith("hf://"):
            assert re.fullmatch(r"hf://timm/[\w.]+", entry.source)
            assert entry.file == "model.safetensors"
        else:
            assert re.fullmatch(r"https://\S+\.(pth|h5)(#md5=[0-9a-f]{32}|#sha256=)?", entry.source)
            assert entry.sha256 or "#" in entry.source
        if found := re.search(r"-([0-9a-f]{8})\.pth$", entry.source):
            assert entry.sha256 == found[1]  # as PyTorch's own downloader reads it
        assert entry.top1 is None or 50 < entry.top1 < 85
        p = entry.preprocessing
        assert p["input_size"][0] == len(p["mean"]) == len(p["std"]) == 3
        assert all(0 < x < 1 for x in p["mean"] + p["std"])
        if entry.layout != "keras":
            assert p["interpolation"] in ("bilinear", "bicubic") and 0.8 < p["crop_pct"] <= 1
        shape = variant(entry.model).input_shape
        if entry.layout == "keras":
            assert tuple(p["input_size"][1:]) == shape[:2]


def test_what_is_known_of_some():
    entry = find_entry("resnet50.a1_in1k")  # timm's card
    assert (entry.model, entry.layout, entry.top1) == ("resnet50", "timm", 81.214)
    p = entry.preprocessing
    assert (p["test_input_size"], p["test_crop_pct"], p["interpolation"]) == (
        [3, 288, 288],
        1.0,
        "bicubic",
    )
    assert find_entry("alexnet.tv_in1k").sha256 == "7be5be79"  # alexnet-owt-7be5be79.pth
    assert find_entry("vgg19.tv_in1k").source == "hf://timm/vgg19.tv_in1k"
    assert find_entry("googlenet") == find_entry("googlenet.tv_in1k")  # which is the only one
    assert find_entry("seresnext50_32x4d.racm_in1k").model == "seresnext50_32x4d_timm"
    assert find_entry("legacy_senet154.in1k").model == "senet154"
    vgg = find_entry("vgg16.keras_in1k").preprocessing  # Keras' "caffe" mode: 0..255, BGR
    assert vgg["channels"] == "BGR"
    assert [round(255 * x, 3) for x in vgg["mean"]] == [123.68, 116.779, 103.939]
    assert [round(255 * x, 4) for x in vgg["std"]] == [1.0] * 3
    # torchvision's code changes ImageNet's normalisation to -1..1 (`transform_input`).
    assert find_entry("googlenet.tv_in1k").preprocessing["mean"] == [0.5] * 3


def test_licences():
    licences = {entry.licence for entry in list_entries(licence="permissive")}
    assert licences == set(PERMISSIVE)
    limited = [entry.full_name for entry in list_entries(licence="cc-by-nc-4.0")]
    # Facebook's semi-weakly supervised ones; 5 of the 16 are of a network that is not here.
    assert len(limited) == 11 and all(".fb_" in name for name in limited)
    assert {entry.licence for entry in ENTRIES} == {*PERMISSIVE, "cc-by-nc-4.0", ""}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet50", "there are several pretrained weights for resnet50: resnet50.a1_in1k, "),
        ("resnet50.a9_in1k", "no pretrained weights are called 'resnet50.a9_in1k': did you mean"),
        ("lenet5", "no pretrained weights are called 'lenet5': see `flaxcnn list --pretrained`"),
    ],
)
def test_a_wrong_name_gets_near_ones(name, message):
    with pytest.raises(UserError) as error:
        find_entry(name)
    assert str(error.value).startswith(message)


def test_timms_names_are_those_of_its_weights():
    for entry in ENTRIES:
        if entry.layout == "timm":
            assert timm_name(entry.model) == entry.name
            assert model_of_timm(entry.name) == entry.model
    assert timm_name("mnist_tiny") == model_of_timm("vit_base_patch16_224") == ""


def test_the_list_says_what_is_known():
    lines = list_pretrained(["resnet18"]).split("\n")
    assert lines[0].split() == ["name", "source", "size", "licence", "top-1", "preprocessing"]
    (row,) = (line for line in lines if line.startswith("resnet18.a1_in1k"))
    assert re.split(r" {2,}", row)[1:] == [
        "timm",
        "~47 MB",
        "apache-2.0",
        "73.16",
        "288, crop 1, bicubic, ImageNet's mean and std",
    ]
    shown = list_pretrained(["vgg16*"], "permissive", verbose=True)
    assert "hf://timm/vgg16.tv_in1k" in shown and "BGR less its mean" in shown
    with pytest.raises(UserError, match="resnet18.tv has no cc-by-nc-4.0 weights: bsd-3-clause"):
        list_pretrained(["resnet18.tv"], "cc-by-nc-4.0")
    with pytest.raises(UserError, match="no weights have the licence 'gpl': permissive, apache"):
        list_pretrained([], "gpl")


def test_imagenets_classes():
    names, ids = class_names("imagenet1k"), wordnet_ids("imagenet1k")
    assert len(names) == len(set(ids)) == 1000 and list(ids) == sorted(ids)
    assert (ids[0], names[0]) == ("n01440764", "tench") and names[207] == "golden_retriever"
    assert json.dumps(names)  # plain strings
    with pytest.raises(UserError, match="no class names of 'imagenet21k': imagenet1k"):
        class_names("imagenet21k")


@pytest.mark.zoo
@pytest.mark.parametrize(
    ("model", "layout"), sorted({(entry.model, entry.layout) for entry in ENTRIES})
)
def test_every_tensor_has_a_name_in_its_layout(model, layout):
    sources = list_sources(model, create_model(model), layout)
    named = [name for source in sources.values() for name in source.their_shapes]
    assert len(named) == len(set(named)) >= len(sources)
