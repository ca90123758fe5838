"""Inception-ResNet."""

from collections.abc import Iterator

from flaxcnn.errors import UserError
from flaxcnn.models.inception_resnet import PLANS, STEM_V2, InceptionResNet
from flaxcnn.weights.rules import Rule

TIMM_UNITS = {
    "stem_conv1": "conv2d_1a",
    "stem_conv2": "conv2d_2a",
    "stem_conv3": "conv2d_2b",
    "stem_conv4": "conv2d_3b",
    "stem_conv5": "conv2d_4a",
    "head_conv": "conv2d_7b",
}
TIMM_MODULES = {"stem_mixed": "mixed_5b", "reduction_a": "mixed_6a", "reduction_b": "mixed_7a"}


def timm(network: InceptionResNet) -> list[Rule]:
    """Names of timm's `inception_resnet_v2`: branches and their layers are numbered from 0."""
    rules = [Rule("classifier", "classif")]
    for ours, theirs in TIMM_UNITS.items():
        rules.append(Rule(ours + "/(conv|bn)", rf"{theirs}.\1"))
    for module, layout in _list_modules(network):
        theirs = TIMM_MODULES.get(module) or _timm_block(module, network.depths[2])
        if module.startswith("block"):
            rules.append(Rule(f"{module}/expand", f"{theirs}.conv2d"))
            module += "/branches"
        for i, branch in enumerate(layout.split("|")):
            layers = branch.split()
            numbers = [j for j, layer in enumerate(layers) if "@" in layer]
            for convolution, j in enumerate(numbers, 1):
                name = f"branch{i}.{j}" if len(layers) > 1 else f"branch{i}"
                ours = f"{module}/branch{i + 1}_conv{convolution}"
                rules.append(Rule(ours + "/(conv|bn)", rf"{theirs}.{name}.\1"))
    return rules


def keras(network: InceptionResNet) -> list[Rule]:
    """Names of Keras' `InceptionResNetV2`, where most layers are only numbered through."""
    rules = [
        Rule("classifier", "predictions"),
        Rule("head_conv/conv", "conv_7b"),
        Rule("head_conv/bn", "conv_7b_bn"),
        Rule(r"block_a(\d+)/expand", r"block35_\1_conv"),
        Rule(r"block_b(\d+)/expand", r"block17_\1_conv"),
        Rule(r"block_c(\d+)/expand", r"block8_\1_conv"),
    ]
    units = [f"stem_conv{i}" for i in range(1, 6)]
    for module, layout in _list_modules(network):
        if module.startswith("block"):
            module += "/branches"
        for i, branch in enumerate(layout.split("|"), 1):
            units += [f"{module}/branch{i}_conv{j + 1}" for j in range(branch.count("@"))]
    for i, unit in enumerate(units):
        number = f"_{i}" if i else ""
        rules.append(Rule(f"{unit}/conv", f"conv2d{number}"))
        rules.append(Rule(f"{unit}/bn", f"batch_normalization{number}"))
    return rules


def _list_modules(network: InceptionResNet) -> Iterator[tuple[str, str]]:
    """The modules with branches, in order, and their layouts."""
    if network.plan != "v2":
        raise UserError(f"nobody else has weights of Inception-ResNet {network.plan!r}")
    plan, (a, b, c) = PLANS[network.plan], network.depths
    yield "stem_mixed", STEM_V2
    yield from ((f"block_a{i + 1}", plan.block_a) for i in range(a))
    yield "reduction_a", plan.reduction_a
    yield from ((f"block_b{i + 1}", plan.block_b) for i in range(b))
    yield "reduction_b", plan.reduction_b
    yield from ((f"block_c{i + 1}", plan.block_c) for i in range(c))


def _timm_block(module: str, last: int) -> str:
    kind, number = module[6], int(module[7:])
    if kind == "c" and number == last:
        return "block8"
    return {"a": "repeat", "b": "repeat_1", "c": "repeat_2"}[kind] + f".{number - 1}"


LAYOUTS = {"timm": timm, "keras": keras}
