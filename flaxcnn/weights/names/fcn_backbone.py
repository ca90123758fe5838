"""torchvision's `fcn_resnet50` and `fcn_resnet101`."""

from flaxcnn.errors import UserError
from flaxcnn.models.fcn_backbone import DilatedFCN, FCNBackbone
from flaxcnn.weights.names import resnet
from flaxcnn.weights.rules import Rule


def torchvision(network: FCNBackbone) -> list[Rule]:
    """Names of torchvision. Raises UserError for heads and backbones that it has not."""
    if not isinstance(network, DilatedFCN) or not network.backbone.startswith("resnet"):
        name = type(network).__name__
        raise UserError(f"torchvision has no {name} on {network.backbone}")
    stem = Rule("stem_(conv|bn)", r"\g<1>1")
    return [
        *(
            rule._replace(ours=f"backbone/{rule.ours}", theirs=f"backbone.{rule.theirs}")
            for rule in (stem, *resnet.list_block_rules("se"))
        ),
        *(
            Rule(f"{ours}_{layer}", f"{theirs}.{index}")
            for ours, theirs in (("head", "classifier"), ("auxiliary", "aux_classifier"))
            for layer, index in (("conv", 0), ("bn", 1), ("classifier", 4))
        ),
    ]


LAYOUTS = {"torchvision": torchvision}
