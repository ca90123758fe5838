"""SENet-154."""

from flaxcnn.models.senet import SENet
from flaxcnn.weights.names.resnet import list_block_rules
from flaxcnn.weights.rules import Rule


def timm(network: SENet) -> list[Rule]:
    """Names of timm's `legacy_senet154`, and of its `senet154`, which pools with a border."""
    if network.ceil_pool:
        return [
            Rule(r"stem_(conv|bn)(\d)", r"layer0.\1\2"),
            *list_block_rules("se_module"),
            Rule("classifier", "last_linear"),
        ]
    return [
        Rule(r"stem_conv1", "conv1.0"),
        Rule(r"stem_bn1", "conv1.1"),
        Rule(r"stem_conv2", "conv1.3"),
        Rule(r"stem_bn2", "conv1.4"),
        Rule(r"stem_conv3", "conv1.6"),
        Rule(r"stem_bn3", "bn1"),
        *list_block_rules("se"),
        Rule("classifier", "fc"),
    ]


LAYOUTS = {"timm": timm}
