"""torchvision's `fasterrcnn_resnet50_fpn` and `maskrcnn_resnet50_fpn`."""

from flaxcnn.errors import UserError
from flaxcnn.models._two_stage import TwoStageDetector
from flaxcnn.models.faster_rcnn import FasterRCNN
from flaxcnn.weights.names import resnet
from flaxcnn.weights.rules import Rule, flatten_from


def torchvision(network: TwoStageDetector) -> list[Rule]:
    """Names of torchvision. Raises UserError for heads and backbones that it has not."""
    if not isinstance(network, FasterRCNN) or not network.backbone.startswith("resnet"):
        name = type(network).__name__
        raise UserError(f"torchvision has no {name} on {network.backbone}")
    stem = Rule("stem_(conv|bn)", r"\g<1>1")
    return [
        *(
            rule._replace(ours=f"backbone/{rule.ours}", theirs=f"backbone.body.{rule.theirs}")
            for rule in (stem, *resnet.list_block_rules("se"))
        ),
        Rule(r"fpn/(inner|layer)(\d)", r"backbone.fpn.\1_blocks.{2-1}.0"),
        Rule("rpn/conv", "rpn.head.conv.0.0"),
        Rule("rpn/scores", "rpn.head.cls_logits"),
        Rule("rpn/boxes", "rpn.head.bbox_pred"),
        Rule("fc1", "roi_heads.box_head.fc6", kernel=flatten_from(7, 7)),
        Rule("fc2", "roi_heads.box_head.fc7"),
        Rule("classifier", "roi_heads.box_predictor.cls_score"),
        Rule("boxes", "roi_heads.box_predictor.bbox_pred"),
        Rule(r"mask_conv(\d)", r"roi_heads.mask_head.{1-1}.0"),
        Rule("mask_enlarge", "roi_heads.mask_predictor.conv5_mask"),
        Rule("mask_classifier", "roi_heads.mask_predictor.mask_fcn_logits"),
    ]


LAYOUTS = {"torchvision": torchvision}
# The names in torchvision's own files, which are older than its convolutions with a norm.
OTHER_NAMES = {
    "torchvision": (
        (r"backbone\.fpn\.(\w+)\.(\d)\.(weight|bias)$", r"backbone.fpn.\1.\2.0.\3"),
        (r"rpn\.head\.conv\.(weight|bias)$", r"rpn.head.conv.0.0.\1"),
        *(
            (rf"roi_heads\.mask_head\.mask_fcn{i + 1}\.", f"roi_heads.mask_head.{i}.0.")
            for i in range(4)
        ),
    )
}
