"""Inception-v3 in torchvision, timm and Keras."""

from flaxcnn.errors import UserError
from flaxcnn.models.inception_v3 import MODULES, InceptionV3, Layer
from flaxcnn.weights.rules import Rule

AUXILIARY = r"AuxLogits\."
STEM = {
    "conv1a": "Conv2d_1a_3x3",
    "conv2a": "Conv2d_2a_3x3",
    "conv2b": "Conv2d_2b_3x3",
    "conv3b": "Conv2d_3b_1x1",
    "conv4a": "Conv2d_4a_3x3",
}


def torchvision(network: InceptionV3) -> list[Rule]:
    """Names of torchvision and timm, whose BatchNorm has a scale."""
    if not network.norm_scale:
        raise UserError("torchvision has no InceptionV3 without scales: the layout is 'keras'")
    return [
        *(Rule(f"{ours}/(conv|bn)", rf"{theirs}.\1") for ours, theirs in STEM.items()),
        Rule(r"mixed_(\d\w)/pool_project/(conv|bn)", r"Mixed_\1.branch_pool.\2"),
        Rule(r"mixed_(\d\w)/conv(\w+)/(conv|bn)", r"Mixed_\1.branch\2.\3"),
        Rule(r"auxiliary_conv(\d)/(conv|bn)", r"AuxLogits.conv{1-1}.\2"),
        Rule("auxiliary_classifier", "AuxLogits.fc"),
        Rule("classifier", "fc"),
    ]


def keras(network: InceptionV3) -> list[Rule]:
    """Names of Keras, which numbers layers in the order it makes them; it has no head."""
    if network.norm_scale or network.auxiliary:
        raise UserError("Keras' InceptionV3 has no scales and no head: it is inception_v3_keras")
    paths = list(STEM)
    for module, branches in MODULES.items():
        for step in (step for branch in branches for step in branch if not isinstance(step, str)):
            layers = [step] if isinstance(step, Layer) else step
            paths += [f"{module}/{layer.name}" for layer in layers]
    rules = [Rule("classifier", "predictions")]
    for i, path in enumerate(paths):
        number = f"_{i}" if i else ""
        rules.append(Rule(f"{path}/conv", f"conv2d{number}"))
        rules.append(Rule(f"{path}/bn", f"batch_normalization{number}"))
    return rules


LAYOUTS = {"torchvision": torchvision, "timm": torchvision, "keras": keras}
