"""Darknet-19 and Darknet-53."""

from flaxcnn.errors import UserError
from flaxcnn.models.darknet import Darknet19, Darknet53
from flaxcnn.weights.names._order import darknet
from flaxcnn.weights.rules import Rule


def timm(network: Darknet19 | Darknet53) -> list[Rule]:
    """Names of timm's `darknet53`, where stages and blocks are numbered from 0."""
    if not isinstance(network, Darknet53):
        raise UserError("timm has no Darknet-19")
    return [
        Rule("stem_(conv|bn)", r"stem.conv1.\1"),
        Rule(r"stage(\d)_down_(conv|bn)", r"stages.{1-1}.conv_down.\2"),
        Rule(r"stage(\d)_block(\d+)/(conv|bn)(\d)", r"stages.{1-1}.blocks.{2-1}.conv\4.\3"),
        Rule("classifier", "head.fc"),
    ]


LAYOUTS = {"timm": timm, "darknet": darknet}
