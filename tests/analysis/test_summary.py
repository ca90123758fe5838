"""Rows and totals of summaries, against counts by hand and the papers' tables."""

import json
import re

import jax
import numpy as np
import pytest
from flax import linen as nn

from flaxcnn.analysis import draw_field, field_by_depth, format_markdown, format_text, summary
from flaxcnn.commands.main import main
from flaxcnn.models import create_model, variant
from flaxcnn.training import Config, DataConfig, ModelConfig
from flaxcnn.training.config_json import to_dict


def summarize(name, **kwargs):
    return summary(create_model(name), variant(name).input_shape, name=name, **kwargs)


def test_lenet5_row_by_row():
    """LeCun et al. 1998, section II: the layers' maps and trainable parameters."""
    found = summarize("lenet5_1998")
    rows = [(layer.path, layer.output_shape, layer.params) for layer in found.layers]
    assert rows == [
        ("c1", (28, 28, 6), 156),
        ("s2", (14, 14, 6), 12),
        ("c3", (10, 10, 16), 1516),
        ("s4", (5, 5, 16), 32),
        ("c5", (1, 1, 120), 48_120),
        ("f6", (84,), 10_164),
    ]
    assert [layer.receptive_field for layer in found.layers[:5]] == [
        (side, side) for side in (5, 6, 14, 16, 32)
    ]
    assert (found.params, found.statistics, found.weight_bytes) == (60_000, 0, 240_000)
    assert not found.layers[-1].located and found.layers[-1].everywhere


def test_a_residual_network():
    found = summarize("resnet18")
    by_path = {layer.path: layer for layer in found.layers}
    stem, norm = by_path["stem_conv"], by_path["stem_bn"]
    assert (stem.params, stem.multiply_adds) == (64 * 3 * 49, 112 * 112 * 64 * 3 * 49)
    assert (norm.params, norm.statistics, norm.multiply_adds) == (128, 128, 0)
    assert (found.params, found.statistics) == (11_689_512, 9_600)  # torchvision
    assert found.multiply_adds == sum(layer.multiply_adds for layer in found.layers)
    assert found.multiply_adds == 1_814_073_344
    assert found.params == sum(layer.params for layer in found.layers)
    assert found.receptive_field == (435, 435)
    assert found.weight_bytes == 4 * (11_689_512 + 9_600)


def test_auxiliary_classifiers_count_in_training_only():
    """BVLC's GoogLeNet: 8,372,224 multiply-adds of the two (its train_val.prototxt)."""
    found = summarize("googlenet_aux")
    extra = [layer for layer in found.layers if layer.training_only]
    assert {layer.path.split("/")[0] for layer in extra} == {"auxiliary1", "auxiliary2"}
    assert sum(layer.multiply_adds for layer in extra) == 8_372_224
    forward = found.training_multiply_adds - found.backward_multiply_adds
    assert forward - found.multiply_adds == 8_372_224
    assert found.params == sum(layer.params for layer in found.layers) == 13_378_280


def test_activations_of_vgg16():
    """Kept: images and what 13 convolutions and three dense layers write, as its Table 1 has it."""
    sides = ((224, 64, 2), (112, 128, 2), (56, 256, 3), (28, 512, 3), (14, 512, 3))
    values = sum(count * side * side * features for side, features, count in sides)
    values += 224 * 224 * 3 + 4096 + 4096 + 1000
    found = summarize("vgg16", batch=8)
    assert found.training_activation_bytes == 8 * 4 * values
    # The second convolution reads and writes 224 x 224 x 64.
    assert found.activation_bytes == 8 * 4 * 2 * 224 * 224 * 64


def test_the_kept_activations_of_dense_layers():
    """What each of three dense layers needs for its gradients is its input."""
    model = nn.Sequential([nn.Dense(30), nn.Dense(20), nn.Dense(10)])
    found = summary(model, (50,), batch=4)
    assert found.training_activation_bytes == 4 * 4 * (50 + 30 + 20 + 10)


def test_a_layer_that_is_called_twice_has_its_parameters_once():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = nn.Dense(4, name="shared")
            return layer(layer(x))

    found = summary(Twice(), (4,))
    assert [layer.params for layer in found.layers] == [20, 0]
    assert [layer.multiply_adds for layer in found.layers] == [16, 16]
    assert (found.params, found.network) == (20, "Twice")


def test_840_million_parameters_take_no_memory(monkeypatch):
    monkeypatch.setattr(jax, "device_put", None)  # nothing is made
    found = summarize("bad_design_840m")
    assert [layer.params for layer in found.layers if layer.params] == [
        *(19_456, 819_328, 836_829_696, 51_300)
    ]
    assert found.weight_bytes == 4 * 837_719_780


def test_half_precision_halves_activations_not_weights():
    exact, half = (
        summary(create_model("digits_cnn", dtype=np.dtype(dtype)), (8, 8, 1))
        for dtype in ("float32", jax.numpy.bfloat16)
    )
    assert half.weight_bytes == exact.weight_bytes
    assert half.training_activation_bytes < 0.6 * exact.training_activation_bytes


def test_the_formats_say_the_same(capsys):
    assert main(["summary", "nin_cifar10", "--image-size", "40,32", "--format", "json"]) == 0
    values = json.loads(capsys.readouterr().out)
    found = summary(create_model("nin_cifar10"), (40, 32, 3), name="nin_cifar10")
    assert values == json.loads(json.dumps(found.to_dict()))
    text, table = format_text(found), format_markdown(found)
    for word in ("stage1_conv1", "40 x 32 x 192", f"{found.multiply_adds:,}", "966,986", "27"):
        assert word in text and word in table, word
    lines = table.split("\n")
    assert {line.count("|") for line in lines[: lines.index("")]} == {8}
    assert main(["summary", "nin_cifar10"]) == 0
    assert "222,486,528 forward" in capsys.readouterr().out  # zoo.csv's, at 32


def test_a_run_is_summarized_as_its_config_has_it(tmp_path, capsys):
    config = Config(model=ModelConfig("digits_cnn"), data=DataConfig("digits"))
    facts = {
        **{"class_names": list("abc"), "image_shape": [8, 8, 1], "examples": {}, "skipped": 0},
        **{"mean": [0.0], "std": [1.0], "parameters": 0, "steps_per_call": 1},
    }
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    (tmp_path / "run.json").write_text(json.dumps(facts))
    assert main(["summary", str(tmp_path)]) == 0
    last = next(x for x in capsys.readouterr().out.split("\n") if x.startswith("classifier"))
    assert re.match(r"classifier +Dense +3 ", last)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vgg17"], "unknown model 'vgg17'"),
        (["vgg16", "--image-size", "8"], "--image-size must be HEIGHT,WIDTH"),
        (["vgg16", "--image-size", "8,8"], "VGG needs images of at least 32x32"),
        (["vgg16", "--batch", "0"], "--batch is 0"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
    assert main(["summary", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_the_picture_has_the_fields():
    found = summarize("vgg11")
    points = field_by_depth(found)
    assert points[0].tolist() == [1, 3] and points[-1].tolist() == [13, 150]
    axes = draw_field(found, summarize("lenet_caffe")).axes[0]
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), points[:, 1])
    assert [text.get_text() for text in axes.texts] == ["image, 28", "image, 224"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["vgg11", "lenet_caffe"]
