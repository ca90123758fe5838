"""MobileNet."""

from flaxcnn.models.mobilenet import STAGES, MobileNet
from flaxcnn.weights.rules import DEPTHWISE_LAST, DEPTHWISE_OHWI, Rule, Transform, folded

AS_CONV = Transform(lambda x: x[None, None], lambda x, shape: x.reshape(shape))


def keras(network: MobileNet) -> list[Rule]:
    """Names of keras.applications.MobileNet, whose classifier is a 1x1 convolution."""
    return [
        Rule("stem_conv", "conv1"),
        Rule("stem_bn", "conv1_bn"),
        Rule(r"block(\d+)/depthwise", r"conv_dw_\1", kernel=DEPTHWISE_LAST),
        Rule(r"block(\d+)/depthwise_bn", r"conv_dw_\1_bn"),
        Rule(r"block(\d+)/pointwise", r"conv_pw_\1"),
        Rule(r"block(\d+)/pointwise_bn", r"conv_pw_\1_bn"),
        Rule("classifier", "conv_preds", kernel=AS_CONV),
    ]


def timm(network: MobileNet) -> list[Rule]:
    """Names of timm's mobilenetv1_100."""
    rules = [
        Rule("stem_conv", "conv_stem"),
        Rule("stem_bn", "bn1"),
        Rule("classifier", "classifier"),
    ]
    places = [(stage, i) for stage, blocks in enumerate(STAGES) for i in range(len(blocks))]
    for number, (stage, i) in enumerate(places, 1):
        for ours, theirs in (
            ("depthwise", "conv_dw"),
            ("depthwise_bn", "bn1"),
            ("pointwise", "conv_pw"),
            ("pointwise_bn", "bn2"),
        ):
            rules.append(Rule(f"block{number}/{ours}", f"blocks.{stage}.{i}.{theirs}"))
    return rules


def tflite(network: MobileNet) -> list[Rule]:
    """Names of TF-slim, as in Google's TFLite files; blocks are counted from 1, after the stem."""
    scope, constants = "MobilenetV1/MobilenetV1/Conv2d_", folded(network.epsilon)
    block = r"block(\d+)/(depthwise|pointwise)"
    return [
        Rule("stem_conv", f"{scope}0"),
        Rule("stem_bn", f"{scope}0", constants=constants),
        Rule(r"block(\d+)/depthwise", rf"{scope}\1_depthwise", kernel=DEPTHWISE_OHWI),
        Rule(block, rf"{scope}\1_\2"),
        Rule(f"{block}_bn", rf"{scope}\1_\2", constants=constants),
        Rule("classifier", "MobilenetV1/Logits/Conv2d_1c_1x1"),
    ]


LAYOUTS = {"keras": keras, "timm": timm, "tflite": tflite}

# Keras 2 calls a depthwise kernel otherwise than Keras 3.
OTHER_NAMES = {"keras": ((r"(conv_dw_\d+)/depthwise_kernel", r"\1/kernel"),)}
