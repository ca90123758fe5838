"""SqueezeNet."""

from flaxcnn.models.squeezenet import SqueezeNet
from flaxcnn.weights.rules import Rule

FIRE = r"fire(\d)/"


def torchvision(network: SqueezeNet) -> list[Rule]:
    """Names of torchvision, where a fire module is a place in a list, poolings between them.

    No file has `bypass`; the name is ours.
    """
    rules = [Rule("stem_conv", "features.0"), Rule("classifier", "classifier.1")]
    place, number = 2, 2  # 0 and 1 are the stem and its ReLU
    for count in network.fires:
        place += 1
        for _ in range(count):
            rules.append(Rule(rf"fire{number}/(\w+)", rf"features.{place}.\1"))
            place, number = place + 1, number + 1
    return rules


def caffe(network: SqueezeNet) -> list[Rule]:
    """Layers of the authors' prototxt. No file has `bypass`; the name is ours."""
    return [
        Rule("stem_conv", "conv1"),
        Rule(FIRE + "squeeze", r"fire\1/squeeze1x1"),
        Rule(FIRE + r"(expand\dx\d|bypass)", r"fire\1/\2"),
        Rule("classifier", "conv10"),
    ]


LAYOUTS = {"torchvision": torchvision, "caffe": caffe}

# The names in the Deep Compression release of SqueezeNet 1.0.
OTHER_NAMES = {
    "caffe": (
        (r"(fire\d)/conv1x1_1\.", r"\1/squeeze1x1."),
        (r"(fire\d)/conv(1x1|3x3)_2\.", r"\1/expand\2."),
        (r"conv_final\.", "conv10."),
    )
}
