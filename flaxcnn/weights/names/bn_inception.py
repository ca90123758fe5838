"""BN-Inception and SE-BN-Inception."""

from flaxcnn.models.bn_inception import BNInception
from flaxcnn.weights.rules import Rule

BRANCHES = {
    "conv1x1": "1x1",
    "reduce3x3": "3x3_reduce",
    "conv3x3": "3x3",
    "reduce_double3x3": "double3x3_reduce",
    "double3x3_1": "double3x3a",
    "double3x3_2": "double3x3b",
    "pool_project": "pool_proj",
}


def caffe(network: BNInception) -> list[Rule]:
    """Names of SE-BN-Inception's layers; the blobs of `NAME/bn/scale` are under `NAME/bn`."""
    modules = {"conv1": "conv1/7x7_s2", "conv2_reduce": "conv2/3x3_reduce", "conv2": "conv2/3x3"}
    modules |= {rf"(inception_\d\w)/{ours}": rf"\1/{theirs}" for ours, theirs in BRANCHES.items()}
    return [
        *(Rule(f"{ours}/conv", theirs) for ours, theirs in modules.items()),
        *(Rule(f"{ours}/bn", f"{theirs}/bn") for ours, theirs in modules.items()),
        Rule(r"(inception_\d\w)/se/reduce", r"\1_1x1_down"),
        Rule(r"(inception_\d\w)/se/expand", r"\1_1x1_up"),
        Rule("classifier", "classifier"),
    ]


LAYOUTS = {"caffe": caffe}
