"""ResNetV2."""

from flaxcnn.models.resnet_v2 import ResNetV2
from flaxcnn.weights.rules import Rule, dense_as_conv

BLOCK = r"stage(\d)_block(\d+)"


def timm(network: ResNetV2) -> list[Rule]:
    """Names of timm's `resnetv2_*`, whose head is a 1x1 convolution."""
    return [
        Rule("stem_conv", "stem.conv"),
        Rule(BLOCK + "/shortcut_conv", r"stages.{1-1}.blocks.{2-1}.downsample.conv"),
        Rule(BLOCK + r"/conv(\d)", r"stages.{1-1}.blocks.{2-1}.conv\3"),
        Rule(BLOCK + r"/bn(\d)", r"stages.{1-1}.blocks.{2-1}.norm\3"),
        Rule("final_bn", "norm"),
        Rule("classifier", "head.fc", kernel=dense_as_conv()),
    ]


def keras(network: ResNetV2) -> list[Rule]:
    """Names of Keras' `ResNet*V2`."""
    return [
        Rule("stem_conv", "conv1_conv"),
        Rule(BLOCK + "/shortcut_conv", r"conv{1+1}_block\2_0_conv"),
        Rule(BLOCK + r"/conv(\d)", r"conv{1+1}_block\2_\3_conv"),
        Rule(BLOCK + "/bn1", r"conv{1+1}_block\2_preact_bn"),
        Rule(BLOCK + r"/bn(\d)", r"conv{1+1}_block\2_{3-1}_bn"),
        Rule("final_bn", "post_bn"),
        Rule("classifier", "predictions"),
    ]


LAYOUTS = {"timm": timm, "keras": keras}
