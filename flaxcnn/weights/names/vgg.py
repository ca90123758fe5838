"""VGG."""

from flaxcnn.models.vgg import VGG
from flaxcnn.weights.rules import Rule, dense_as_conv, flatten_from

CONV = r"stage(\d)_conv(\d)"


def torchvision(network: VGG) -> list[Rule]:
    """Names of torchvision's `vgg*`: places in a list of layers that counts ReLUs and poolings."""
    return [
        *_list_features(network),
        Rule("fc1", "classifier.0", kernel=flatten_from(network.map_side, network.map_side)),
        Rule("fc2", "classifier.3"),
        Rule("classifier", "classifier.6"),
    ]


def timm(network: VGG) -> list[Rule]:
    """Names of timm's `vgg*`, whose hidden layers are convolutions."""
    return [
        *_list_features(network),
        Rule("fc1", "pre_logits.fc1", kernel=dense_as_conv(network.map_side, network.map_side)),
        Rule("fc2", "pre_logits.fc2", kernel=dense_as_conv()),
        Rule("classifier", "head.fc"),
    ]


def keras(network: VGG) -> list[Rule]:
    """Names of Keras' VGG16 and VGG19."""
    return [
        Rule(CONV, r"block\1_conv\2"),
        Rule(r"(fc\d)", r"\1"),
        Rule("classifier", "predictions"),
    ]


def caffe(network: VGG) -> list[Rule]:
    """Names of the authors' files."""
    return [
        Rule(CONV, r"conv\1_\2"),
        Rule("fc1", "fc6", kernel=flatten_from(network.map_side, network.map_side)),
        Rule("fc2", "fc7"),
        Rule("classifier", "fc8"),
    ]


def _list_features(network: VGG) -> list[Rule]:
    rules, place = [], 0
    for stage, kernels in enumerate(network.kernels, 1):
        for i in range(1, len(kernels) + 1):
            rules.append(Rule(f"stage{stage}_conv{i}", f"features.{place}"))
            if network.batch_norm:
                rules.append(Rule(f"stage{stage}_bn{i}", f"features.{place + 1}"))
            place += 3 if network.batch_norm else 2
        place += 1
    return rules


LAYOUTS = {"torchvision": torchvision, "timm": timm, "keras": keras, "caffe": caffe}
