"""Xception."""

from collections.abc import Mapping

from flaxcnn.models.xception import Xception
from flaxcnn.weights.rules import DEPTHWISE_LAST, Rule

SEPARABLE: Mapping[str, Mapping] = {
    "depthwise": {"leaves": {"kernel": "depthwise_kernel"}, "kernel": DEPTHWISE_LAST},
    "pointwise": {"leaves": {"kernel": "pointwise_kernel"}},
}


def keras(network: Xception) -> list[Rule]:
    """Names of keras.applications.xception, made in a new session.

    Blocks are counted from 1, the stem; shortcuts have the names that Keras gives by itself.
    """
    last = network.middle_blocks + 5
    blocks = [
        (r"entry_block(\d)/", r"block{1+1}_"),
        (r"middle_block(\d+)/", r"block{1+4}_"),
        ("()exit_block/", rf"block{last}_"),
        ("()exit_", rf"block{last + 1}_"),
    ]
    rules = [
        Rule(r"stem_conv(\d)", r"block1_conv\1"),
        Rule(r"stem_bn(\d)", r"block1_conv\1_bn"),
        Rule("classifier", "predictions"),
    ]
    for i, block in enumerate(("entry_block1", "entry_block2", "entry_block3", "exit_block")):
        number = f"_{i}" if i else ""
        rules.append(Rule(f"{block}/shortcut_conv", f"conv2d{number}"))
        rules.append(Rule(f"{block}/shortcut_bn", f"batch_normalization{number}"))
    for ours, theirs in blocks:
        rules.append(Rule(ours + r"bn(\d)", theirs + r"sepconv\2_bn"))
        for part, changes in SEPARABLE.items():
            rules.append(Rule(ours + rf"sepconv(\d)/{part}", theirs + r"sepconv\2", **changes))
    return rules


LAYOUTS = {"keras": keras}
