"""torchvision's `ssd300_vgg16`."""

from flaxcnn.errors import UserError
from flaxcnn.models.ssd import SSD
from flaxcnn.models.vgg import STAGES
from flaxcnn.weights.rules import Rule


def torchvision(network: SSD) -> list[Rule]:
    """Names of torchvision: places in lists of layers that count ReLUs and poolings.

    Raises UserError for another backbone than VGG-16.
    """
    if network.backbone != "vgg16" or not network.reduced:
        raise UserError(f"torchvision has no SSD on {network.backbone}")
    rules, place = [], 0
    for stage, kernels in enumerate(STAGES["D"], 1):
        for i in range(1, len(kernels) + 1):
            of_list = f"features.{place}" if stage < 5 else f"extra.0.{place}"
            rules.append(Rule(f"backbone/stage{stage}_conv{i}", f"backbone.{of_list}"))
            place += 2
        place = place + 1 if stage < 4 else 1  # the fourth pooling begins another list
    return [
        *rules,
        Rule("normalize", "backbone", leaves={"scale": "scale_weight"}),
        Rule("fc6", "backbone.extra.0.7.1"),
        Rule("fc7", "backbone.extra.0.7.3"),
        Rule(r"extra(\d)_conv1", r"backbone.extra.\1.0"),
        Rule(r"extra(\d)_conv2", r"backbone.extra.\1.2"),
        Rule(r"classes(\d)", r"head.classification_head.module_list.{1-1}"),
        Rule(r"boxes(\d)", r"head.regression_head.module_list.{1-1}"),
    ]


LAYOUTS = {"torchvision": torchvision}
