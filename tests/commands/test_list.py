"""`flaxcnn list`: every choice, with the settings that the code really takes."""

import re

import pytest

from flaxcnn.commands.list import KINDS, list_choices
from flaxcnn.data.augment import read_policy, read_views
from flaxcnn.data.augment.pipeline import MAKERS
from flaxcnn.errors import UserError


def test_models_by_a_part_of_the_name_a_pattern_or_an_alias():
    assert list_choices(["lenet5"]).split("\n") == ["lenet5_1998", "lenet5_dense"]
    assert list_choices(["models", "lenet5*8"]) == "lenet5_1998"
    found = list_choices(["resnet"]).split("\n")
    assert {"resnet18", "cifar_resnet20", "seresnet50"} < set(found)
    assert "resnetv2_50_timm -> resnetv2_50" in found
    row = list_choices(["resnetv2_50_timm"], verbose=True).split("\n")[1]
    assert row.endswith("-> resnetv2_50") and "25,549,352" in row  # timm's number
    assert "vgg16" in list_choices([])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["resnet51"], "no network or kind of choice is called resnet51; did you mean resnet"),
        (["optimizers", "adem"], "no optimizer is called adem; did you mean adam"),
        (["losses", "x"], "no loss is called x; there are cross_entropy, "),
        (["optimiser", "adam"], "optimiser is no kind of choice; these are: models, optimizers, "),
    ],
)
def test_what_is_not_there_is_reported(words, line):
    with pytest.raises(UserError) as error:
        list_choices(words)
    assert str(error.value).startswith(line)


def test_optimizers_with_the_defaults_of_their_papers():
    shown = list_choices(["optimizers"])
    assert re.search(r"^adam +b1=0.9, b2=0.999, eps=1e-08, ", shown, re.MULTILINE)  # Kingma 2015
    assert re.search(r"^lion +b1=0.9, b2=0.99, ", shown, re.MULTILINE)  # Chen 2023
    assert re.search(r"^nesterov +momentum=0.9, nesterov=True, ", shown, re.MULTILINE)
    assert "optimizer.clip.norm=0.0" in shown and "optimizer.schedule.boundaries" not in shown
    assert "rmsprop_tf" in shown and "adam" not in list_choices(["optimizers", "sgd"])


def test_an_augmentation_says_the_range_that_it_accepts():
    shown = list_choices(["augmentations"])
    for name in MAKERS:
        assert f"\n{name}(" in shown
    assert "\nrotate(degrees, fill='reflect')\n" in shown
    block = list_choices(["augmentations", "perspective"])
    assert (
        "distortion: a number in 0..0.9; p: a number in 0..1; fill: 'reflect', 'edge' or" in block
    )
    # What stands there is what a policy may have, and no more.
    read_policy([("perspective", 0.9, 1, "edge"), ("zoom", 0.01, 100, 0.5), ("crop", 4096)])
    for entry in [("perspective", 0.91), ("zoom", 0.009, 1), ("crop", 4097), ("crop", 0.5)]:
        with pytest.raises(UserError, match="must be"):
            read_policy([entry])
    ranges = re.findall(r"(?:number|whole number) in (\S+)\.\.([^\s;]+)", shown)
    assert len(ranges) > 40 and all(float(low) < float(high) for low, high in ranges)


def test_views_and_configs():
    assert "crops(size)\n" in list_choices(["views"])
    read_views([("crops", 4096)])
    shown = list_choices(["configs"])
    assert "flaxcnn train digits " in shown and "flaxcnn study batch_size " in shown


@pytest.mark.parametrize("kind", KINDS)
def test_lines_are_short_and_documented(kind):
    shown = list_choices([kind])
    assert all(len(line) <= 100 for line in shown.splitlines())
    assert "None, None" not in shown and "<function" not in shown
