"""Augmentation: pure functions of (key, image), vmapped inside the training step.

`geometry`, `color` and `filters` are what can be done to one image, without chance; `operations`
and `policies` draw its amounts; `mixing` is about pairs of examples; `pipeline` makes one function
of a policy from the config.
"""

from flaxcnn.data.augment.mixing import MixedLabels, for_labels
from flaxcnn.data.augment.pipeline import Augment, freeze_policy, make_augment, read_policy

__all__ = ["Augment", "MixedLabels", "for_labels", "freeze_policy", "make_augment", "read_policy"]
