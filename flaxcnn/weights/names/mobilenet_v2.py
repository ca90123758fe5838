"""MobileNetV2."""

from collections.abc import Iterator

from flaxcnn.models.mobilenet_v2 import STAGES, MobileNetV2
from flaxcnn.weights.rules import DEPTHWISE_LAST, DEPTHWISE_OHWI, Rule, folded

LAYERS = ("expand", "depthwise", "project")


def _list_blocks() -> Iterator[tuple[str, int, int]]:
    """Our name of each block, its stage and its place in it, from 0."""
    for stage, (_, _, repeats, _) in enumerate(STAGES):
        for i in range(repeats):
            yield f"stage{stage + 1}_block{i + 1}", stage, i


def torchvision(network: MobileNetV2) -> list[Rule]:
    """Names of torchvision. Its first block has no expansion, and its layers one number less."""
    rules = [
        Rule(r"stem_conv", "features.0.0"),
        Rule(r"stem_bn", "features.0.1"),
        Rule(r"head_conv", "features.18.0"),
        Rule(r"head_bn", "features.18.1"),
        Rule("classifier", "classifier.1"),
    ]
    for number, (block, stage, _) in enumerate(_list_blocks(), 1):
        layers = LAYERS if STAGES[stage][0] > 1 else LAYERS[1:]
        for place, layer in enumerate(layers[:-1]):
            theirs = f"features.{number}.conv.{place}"
            rules += [
                Rule(f"{block}/{layer}", f"{theirs}.0"),
                Rule(f"{block}/{layer}_bn", f"{theirs}.1"),
            ]
        last = len(layers) - 1
        rules += [
            Rule(f"{block}/project", f"features.{number}.conv.{last}"),
            Rule(f"{block}/project_bn", f"features.{number}.conv.{last + 1}"),
        ]
    return rules


def timm(network: MobileNetV2) -> list[Rule]:
    """Names of timm's mobilenetv2_*, whose first block is a depthwise separable one."""
    rules = [
        Rule("stem_conv", "conv_stem"),
        Rule("stem_bn", "bn1"),
        Rule("head_conv", "conv_head"),
        Rule("head_bn", "bn2"),
        Rule("classifier", "classifier"),
    ]
    for block, stage, i in _list_blocks():
        convs = ("conv_pw", "conv_dw", "conv_pwl") if stage else ("conv_dw", "conv_pw")
        layers = LAYERS[-len(convs) :]
        for place, (layer, conv) in enumerate(zip(layers, convs, strict=True), 1):
            rules += [
                Rule(f"{block}/{layer}", f"blocks.{stage}.{i}.{conv}"),
                Rule(f"{block}/{layer}_bn", f"blocks.{stage}.{i}.bn{place}"),
            ]
    return rules


def keras(network: MobileNetV2) -> list[Rule]:
    """Names of keras.applications.MobileNetV2."""
    rules = [
        Rule("stem_conv", "Conv1"),
        Rule("stem_bn", "bn_Conv1"),
        Rule("head_conv", "Conv_1"),
        Rule("head_bn", "Conv_1_bn"),
        Rule("classifier", "predictions"),
    ]
    for number, (block, _, _) in enumerate(_list_blocks()):
        prefix = f"block_{number}" if number else "expanded_conv"
        rules += [
            Rule(f"{block}/depthwise", f"{prefix}_depthwise", kernel=DEPTHWISE_LAST),
            Rule(rf"{block}/(\w+)_bn", rf"{prefix}_\1_BN"),
            Rule(rf"{block}/(\w+)", rf"{prefix}_\1"),
        ]
    return rules


def tflite(network: MobileNetV2) -> list[Rule]:
    """Names of TF-slim, as in Google's TFLite files."""
    constants = folded(network.epsilon)
    rules = []
    for ours, theirs in (("stem", "Conv"), ("head", "Conv_1")):
        rules += [
            Rule(f"{ours}_conv", f"MobilenetV2/{theirs}"),
            Rule(f"{ours}_bn", f"MobilenetV2/{theirs}", constants=constants),
        ]
    for number, (block, _, _) in enumerate(_list_blocks()):
        scope = f"MobilenetV2/expanded_conv_{number}" if number else "MobilenetV2/expanded_conv"
        rules += [
            Rule(f"{block}/depthwise", f"{scope}/depthwise", kernel=DEPTHWISE_OHWI),
            Rule(rf"{block}/(\w+)_bn", rf"{scope}/\1", constants=constants),
            Rule(rf"{block}/(\w+)", rf"{scope}/\1"),
        ]
    return [*rules, Rule("classifier", "MobilenetV2/Logits/Conv2d_1c_1x1")]


LAYOUTS = {"torchvision": torchvision, "timm": timm, "keras": keras, "tflite": tflite}

# The released files of Keras 2 have the names of an older script, and its depthwise kernels.
OTHER_NAMES = {
    "keras": (
        (r"(?:mobl|bn)0_conv_0_(bn_)?", r"expanded_conv_\1"),
        (r"(?:mobl|bn)(\d+)_conv_\1_(bn_)?", r"block_\1_\2"),
        (r"(expanded_conv|block_\d+)_bn_(\w+)/", r"\1_\2_BN/"),
        (r"((?:expanded_conv|block_\d+)_depthwise)/depthwise_kernel", r"\1/kernel"),
        (r"Logits/", "predictions/"),
    )
}
