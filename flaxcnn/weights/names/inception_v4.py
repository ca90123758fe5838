"""Inception-v4."""

from flaxcnn.models.inception_v4 import InceptionV4
from flaxcnn.weights.rules import Rule

LEAF = "/(conv|bn)"


def timm(network: InceptionV4) -> list[Rule]:
    """Names of timm's `inception_v4`: modules are numbered through, branches from 0."""
    a, b, _ = network.depths
    first_a, first_b, first_c = 6, 7 + a, 8 + a + b
    reductions = [("reduction_a", first_b - 1), ("reduction_b", first_c - 1)]
    rules = [
        Rule(r"stem_conv(\d)" + LEAF, r"features.{1-1}.\2"),
        Rule("stem_mixed1/branch2_conv1" + LEAF, r"features.3.conv.\1"),
        Rule(r"stem_mixed2/branch(\d)_conv(\d)" + LEAF, r"features.4.branch{1-1}.{2-1}.\3"),
        Rule("stem_mixed3/branch1_conv1" + LEAF, r"features.5.conv.\1"),
        Rule("reduction_a/branch1_conv1" + LEAF, rf"features.{first_b - 1}.branch0.\1"),
        Rule(
            r"inception_c(\d+)/branch([23])_conv(\d)([ab]?)" + LEAF,
            rf"features.{{1+{first_c - 1}}}.branch{{2-1}}_{{3-1}}\4.\5",
        ),
        Rule("classifier", "last_linear"),
    ]
    for kind, first in (("a", first_a), ("b", first_b), ("c", first_c)):
        module, theirs = rf"inception_{kind}(\d+)/", f"features.{{1+{first - 1}}}."
        rules += [
            Rule(module + "branch1_conv1" + LEAF, theirs + r"branch0.\2"),
            Rule(module + r"branch([23])_conv(\d)" + LEAF, theirs + r"branch{2-1}.{3-1}.\4"),
            Rule(module + "branch4_conv1" + LEAF, theirs + r"branch3.1.\2"),  # 0 is pooling
        ]
    return rules + [
        Rule(rf"{name}/branch(\d)_conv(\d)" + LEAF, rf"features.{index}.branch{{1-1}}.{{2-1}}.\3")
        for name, index in reductions
    ]


LAYOUTS = {"timm": timm}
