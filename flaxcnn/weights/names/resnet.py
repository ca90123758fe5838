"""ResNet, ResNeXt and SE-ResNet."""

from flaxcnn.models.resnet import ResNet
from flaxcnn.weights.rules import Rule

BLOCK = r"stage(\d)_block(\d+)"


def torchvision(network: ResNet) -> list[Rule]:
    """Names of torchvision and of timm's `resnet*`, and of akamaster's ResNets for CIFAR-10."""
    return [
        Rule(r"stem_(conv|bn)", r"\g<1>1"),
        *list_block_rules("se"),
        Rule("classifier", "linear" if network.cifar else "fc"),
    ]


def timm(network: ResNet) -> list[Rule]:
    """Names of timm, those of `legacy_*` where the stem is pooled without a border."""
    if not network.ceil_pool:
        return torchvision(network)
    return [
        Rule(r"stem_(conv|bn)", r"layer0.\g<1>1"),
        *list_block_rules("se_module"),
        Rule("classifier", "last_linear"),
    ]


def list_block_rules(gate: str) -> list[Rule]:
    """Rules for the blocks; `gate` is the name of squeeze-and-excitation."""
    block = r"layer\1.{2-1}"
    return [
        Rule(BLOCK + "/shortcut_conv", block + ".downsample.0"),
        Rule(BLOCK + "/shortcut_bn", block + ".downsample.1"),
        Rule(BLOCK + "/se/reduce", f"{block}.{gate}.fc1"),
        Rule(BLOCK + "/se/expand", f"{block}.{gate}.fc2"),
        Rule(BLOCK + r"/(conv|bn)(\d)", block + r".\3\4"),
    ]


def keras(network: ResNet) -> list[Rule]:
    """Names of Keras' `ResNet*`; each bias of a convolution goes into the mean of BatchNorm."""
    stage = r"conv{1+1}_block\2"
    return [
        Rule("stem_conv", "conv1_conv"),
        Rule("stem_bn", "conv1_bn", bias_before="conv1_conv/bias"),
        Rule(BLOCK + "/shortcut_conv", stage + "_0_conv"),
        Rule(BLOCK + "/shortcut_bn", stage + "_0_bn", bias_before=stage + "_0_conv/bias"),
        Rule(BLOCK + r"/conv(\d)", stage + r"_\3_conv"),
        Rule(BLOCK + r"/bn(\d)", stage + r"_\3_bn", bias_before=stage + r"_\3_conv/bias"),
        Rule("classifier", "predictions"),
    ]


LAYOUTS = {"torchvision": torchvision, "timm": timm, "keras": keras}
