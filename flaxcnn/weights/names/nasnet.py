"""NASNet-A."""

from flaxcnn.models.nasnet import NASNet
from flaxcnn.weights.rules import DEPTHWISE_LAST, Rule

# Keras and timm have no auxiliary classifier: the name by which its weights are found missing.
AUXILIARY_HEAD = Rule(r"auxiliary/(\w+)", r"auxiliary_\1")
PAIR = r"/block(\d)_(left|right)/"


def timm(network: NASNet) -> list[Rule]:
    """Names of timm's `nasnetalarge`."""
    n = network.cells
    cells = {"stage1_reduce": "cell_stem_0", "stage2_reduce": "cell_stem_1"}
    cells |= {"stage3_reduce": "reduction_cell_0", "stage4_reduce": "reduction_cell_1"}
    for stage in (2, 3, 4):
        cells |= {f"stage{stage}_cell{i + 1}": f"cell_{(stage - 2) * n + i}" for i in range(n)}
    rules = [
        Rule("stem_(conv|bn)", r"conv0.\1"),
        Rule("classifier", "last_linear"),
        AUXILIARY_HEAD,
    ]
    for ours, theirs in cells.items():
        reduced = ours.endswith(("2_reduce", "_cell1"))  # what it sees has twice the sides
        pair = rf"{theirs}.comb_iter_{{1-1}}_\2."
        rules += [
            Rule(ours + "/current_(conv|bn)", theirs + r".conv_1x1.\1"),
            Rule(ours + r"/previous_conv(\d)", theirs + r".path_\1.conv"),
            Rule(ours + "/previous_conv", theirs + ".conv_prev_1x1.conv"),
            Rule(
                ours + "/previous_bn",
                theirs + (".final_path_bn" if reduced else ".conv_prev_1x1.bn"),
            ),
            Rule(ours + PAIR + r"(depth|point)wise(\d)", pair + r"separable_\4.\3wise_conv2d"),
            Rule(ours + PAIR + r"bn(\d)", pair + r"bn_sep_\3"),
        ]
    return rules


def keras(network: NASNet) -> list[Rule]:
    """Names of keras.applications.nasnet: the paths of its variables."""
    n = network.cells
    cells = {"stage1_reduce": ("reduction", "stem_1"), "stage2_reduce": ("reduction", "stem_2")}
    cells |= {f"stage{s}_reduce": ("reduction", f"reduce_{(s - 2) * n}") for s in (3, 4)}
    for stage, first in ((2, 0), (3, n + 1), (4, 2 * n + 1)):
        cells |= {f"stage{stage}_cell{i + 1}": ("normal", f"{first + i}") for i in range(n)}
    rules = [
        Rule("stem_(conv|bn)", r"stem_\g<1>1"),
        Rule("classifier", "predictions"),
        AUXILIARY_HEAD,
    ]
    for ours, (kind, number) in cells.items():
        scope = f"{kind}_A_block_{number}"
        reduced = ours.endswith(("2_reduce", "_cell1"))
        way = "reduction" if reduced else "projection"
        adjust = f"{scope}/adjust_block/adjust_{way}_block_{number}/adjust"
        rules += [
            Rule(ours + "/current_(conv|bn)", rf"{scope}/{kind}_\1_1_{number}"),
            Rule(ours + r"/previous_conv(\d)", rf"{adjust}_conv_\1_{number}"),
            Rule(ours + "/previous_conv", f"{adjust}_conv_projection_{number}"),
            Rule(ours + "/previous_bn", f"{adjust}_bn_{number}"),
        ]
        for block, side in ((b, side) for b in range(1, 6) for side in ("left", "right")):
            # Keras calls the fifth of a reducing cell left4, too.
            name = "left4" if kind == "reduction" and block == 5 else f"{side}{block}"
            name = f"{kind}_{name}_{number}"
            pair = rf"{scope}/block_{block}/separable_conv_block_{name}/separable_conv_\1"
            path = rf"{ours}/block{block}_{side}/"
            rules += [
                Rule(path + r"bn(\d)", f"{pair}_bn_{name}"),
                Rule(
                    path + r"depthwise(\d)",
                    f"{pair}_{name}",
                    leaves={"kernel": "depthwise_kernel"},
                    kernel=DEPTHWISE_LAST,
                ),
                Rule(
                    path + r"pointwise(\d)", f"{pair}_{name}", leaves={"kernel": "pointwise_kernel"}
                ),
            ]
    return rules


LAYOUTS = {"timm": timm, "keras": keras}
