"""Where a paper and the common ports of its network differ: the data of docs/deviations.md."""

from typing import NamedTuple


class Deviation(NamedTuple):
    """One difference. Models are public names, with shell patterns."""

    models: str
    paper: str  # what the paper says
    ports: str  # what torchvision, Keras, timm or Caffe do
    ours: str  # which name does which, and why
