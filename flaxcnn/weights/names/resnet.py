"""ResNet, ResNeXt and SE-ResNet."""

from flaxcnn.models.resnet import ResNet
from flaxcnn.weights.rules import Rule

BLOCK = r"stage(\d)_block(\d+)"


def torchvision(network: ResNet) -> list[Rule]:
    """Names of torchvision and of timm's `resnet*`."""
    return [
        Rule("stem_conv", "conv1"),
        Rule("stem_bn", "bn1"),
        Rule(BLOCK + "/shortcut_conv", r"layer\1.{2-1}.downsample.0"),
        Rule(BLOCK + "/shortcut_bn", r"layer\1.{2-1}.downsample.1"),
        Rule(BLOCK + "/se/reduce", r"layer\1.{2-1}.se.fc1"),
        Rule(BLOCK + "/se/expand", r"layer\1.{2-1}.se.fc2"),
        Rule(BLOCK + r"/(conv|bn)(\d)", r"layer\1.{2-1}.\3\4"),
        Rule("classifier", "linear" if network.cifar else "fc"),
    ]


LAYOUTS = {"torchvision": torchvision, "timm": torchvision}
