"""The stages of a network that can be asked for, and what is refused."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import flaxcnn
from flaxcnn.errors import UserError
from flaxcnn.models import variant

REFERENCE = Path(__file__).parents[1] / "reference"
TIMM = json.loads((REFERENCE / "timm_features.json").read_text())
SHALLOW = ("mobilenetv1_100", "mobilenetv2_050", "resnet18")

IMAGES = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)


def trace(**arguments):
    model = flaxcnn.create_model("resnet18", num_classes=10, **arguments)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), IMAGES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"out_indices": (1,)}, "out_indices chooses among features: it needs features_only=True"),
        (
            {"features_only": True, "out_indices": ()},
            "out_indices is empty: it must name at least one stage",
        ),
        (
            {"features_only": True, "out_indices": (1, 5)},
            "out_indices has 5, and the network 5 stages: stem, stage1, stage2, stage3, stage4",
        ),
        (
            {"features_only": True, "out_indices": (-6,)},
            "out_indices has -6, and the network 5 stages: stem, stage1, stage2, stage3, stage4",
        ),
    ],
)
def test_out_indices_that_name_no_stage_are_refused(arguments, message):
    with pytest.raises(UserError) as error:
        trace(**arguments)
    assert str(error.value) == message


def test_stages_after_the_last_wanted_have_no_parameters():
    params = trace(features_only=True, out_indices=(0, 2))["params"]
    assert any(name.startswith("stage2") for name in params)
    assert not any(name.startswith(("stage3", "classifier")) for name in params)


def test_feature_info_lists_only_the_wanted_stages():
    model = flaxcnn.create_model("resnet18", features_only=True, out_indices=(-1, 1))
    assert flaxcnn.feature_info(model, (64, 64, 3)) == [("stage4", 512, 32), ("stage1", 64, 4)]


def test_a_network_without_stages_has_no_feature_info():
    with pytest.raises(UserError, match="^LeNet5 has no stages to list$"):
        flaxcnn.feature_info(flaxcnn.create_model("lenet5_1998"), (28, 28, 1))


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in SHALLOW else [pytest.mark.zoo]) for n in TIMM]
)
def test_stages_are_timm_s(name):
    features = flaxcnn.feature_info(flaxcnn.create_model(name), variant(name).input_shape)
    assert [feature.channels for feature in features] == TIMM[name]["channels"]
    assert [feature.stride for feature in features] == TIMM[name]["reduction"]
