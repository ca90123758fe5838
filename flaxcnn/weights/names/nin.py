"""Network in network."""

from flaxcnn.models.nin import NiN
from flaxcnn.weights.rules import Rule


def caffe(network: NiN) -> list[Rule]:
    """Names of the authors' files: convN, then cccp layers counted through the network."""
    last = len(network.blocks)
    suffix = "-1024" if last == 4 else ""  # in the network for ImageNet
    rules = []
    for stage in range(1, last + 1):
        end = suffix if stage == last else ""
        rules += [
            Rule(f"stage{stage}_conv1", f"conv{stage}{end}"),
            Rule(f"stage{stage}_conv2", f"cccp{2 * stage - 1}{end}"),
            Rule(f"stage{stage}_conv3", f"cccp{2 * stage}{end}"),
        ]
    return [*rules, Rule("classifier", f"cccp{2 * last}{suffix}")]


LAYOUTS = {"caffe": caffe}
