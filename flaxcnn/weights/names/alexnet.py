"""AlexNet."""

from flaxcnn.models.alexnet import AlexNet
from flaxcnn.weights.rules import Rule, flatten_from


def torchvision(network: AlexNet) -> list[Rule]:
    """Names of torchvision's `alexnet`, which has one group and no response normalisation."""
    convs = dict(enumerate((0, 3, 6, 8, 10), 1))
    return [
        *(Rule(f"conv{i}", f"features.{index}") for i, index in convs.items()),
        Rule("fc1", "classifier.1", kernel=flatten_from(network.map_side, network.map_side)),
        Rule("fc2", "classifier.4"),
        Rule("classifier", "classifier.6"),
    ]


def caffe(network: AlexNet) -> list[Rule]:
    """Names of BVLC's `bvlc_alexnet`."""
    return [
        Rule(r"(conv\d)", r"\1"),
        Rule("fc1", "fc6", kernel=flatten_from(network.map_side, network.map_side)),
        Rule("fc2", "fc7"),
        Rule("classifier", "fc8"),
    ]


LAYOUTS = {"torchvision": torchvision, "caffe": caffe}
