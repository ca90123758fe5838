"""GoogLeNet: torchvision's form, and the paper's as in Caffe's bvlc_googlenet."""

from flaxcnn.errors import UserError
from flaxcnn.models.googlenet import GoogLeNet
from flaxcnn.weights.rules import Rule, flatten_from

AUXILIARY = r"aux[12]\.|loss[12]/"
HEAD = r"auxiliary(\d)"
BRANCHES = {  # ours: torchvision's, Caffe's
    "conv1x1": ("branch1", "1x1"),
    "reduce3x3": ("branch2.0", "3x3_reduce"),
    "conv3x3": ("branch2.1", "3x3"),
    "reduce5x5": ("branch3.0", "5x5_reduce"),
    "conv5x5": ("branch3.1", "5x5"),
    "pool_project": ("branch4.1", "pool_proj"),
}


def torchvision(network: GoogLeNet) -> list[Rule]:
    """Names of torchvision, which has the form with BatchNorm only."""
    if not network.batch_norm:
        raise UserError("torchvision has no GoogLeNet without BatchNorm: the layout is 'caffe'")
    return [
        Rule(r"conv1/(conv|bn)", r"conv1.\1"),
        Rule(r"conv2_reduce/(conv|bn)", r"conv2.\1"),
        Rule(r"conv2/(conv|bn)", r"conv3.\1"),
        *(
            Rule(rf"inception_(\d\w)/{ours}/(conv|bn)", rf"inception\1.{theirs}.\2")
            for ours, (theirs, _) in BRANCHES.items()
        ),
        Rule(HEAD + r"/conv/(conv|bn)", r"aux\1.conv.\2"),
        Rule(HEAD + "/hidden", r"aux\1.fc1", kernel=flatten_from(4, 4)),
        Rule(HEAD + "/classifier", r"aux\1.fc2"),
        Rule("classifier", "fc"),
    ]


def caffe(network: GoogLeNet) -> list[Rule]:
    """Names of the layers of bvlc_googlenet, which has no BatchNorm."""
    if network.batch_norm:
        raise UserError("Caffe has no GoogLeNet with BatchNorm: the layout is 'torchvision'")
    return [
        Rule("conv1/conv", "conv1/7x7_s2"),
        Rule("conv2_reduce/conv", "conv2/3x3_reduce"),
        Rule("conv2/conv", "conv2/3x3"),
        *(
            Rule(rf"(inception_\d\w)/{ours}/conv", rf"\1/{theirs}")
            for ours, (_, theirs) in BRANCHES.items()
        ),
        Rule(HEAD + "/conv/conv", r"loss\1/conv"),
        Rule(HEAD + "/hidden", r"loss\1/fc", kernel=flatten_from(4, 4)),
        Rule(HEAD + "/classifier", r"loss\1/classifier"),
        Rule("classifier", "loss3/classifier"),
    ]


LAYOUTS = {"torchvision": torchvision, "caffe": caffe}
