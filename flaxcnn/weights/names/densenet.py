"""DenseNet."""

from flaxcnn.models.densenet import DenseNet
from flaxcnn.weights.rules import Rule

LAYER = r"stage(\d)_layer(\d+)"


def torchvision(network: DenseNet) -> list[Rule]:
    """Names of torchvision and of timm's `densenet*`."""
    return [
        Rule("stem_conv", "features.conv0"),
        Rule("stem_bn", "features.norm0"),
        Rule(LAYER + r"/conv(\d)", r"features.denseblock\1.denselayer\2.conv\3"),
        Rule(LAYER + r"/bn(\d)", r"features.denseblock\1.denselayer\2.norm\3"),
        Rule(r"transition(\d)/conv", r"features.transition\1.conv"),
        Rule(r"transition(\d)/bn", r"features.transition\1.norm"),
        Rule("final_bn", "features.norm5"),
        Rule("classifier", "classifier"),
    ]


def keras(network: DenseNet) -> list[Rule]:
    """Names of keras.applications.densenet."""
    return [
        Rule("stem_(conv|bn)", r"conv1_\1"),
        Rule(LAYER + r"/conv(\d)", r"conv{1+1}_block\2_\3_conv"),
        Rule(LAYER + r"/bn(\d)", r"conv{1+1}_block\2_{3-1}_bn"),
        Rule(r"transition(\d)/(conv|bn)", r"pool{1+1}_\2"),
        Rule("final_bn", "bn"),
        Rule("classifier", "predictions"),
    ]


LAYOUTS = {"torchvision": torchvision, "timm": torchvision, "keras": keras}

OTHER_NAMES = {"keras": ((r"conv1/(conv|bn)/", r"conv1_\1/"),)}  # of Keras 2
