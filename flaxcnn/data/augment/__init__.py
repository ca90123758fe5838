"""Augmentation: pure functions of (key, image), vmapped inside the training step.

`color`, `filters`, `resize` and `data/geometry.py` are what can be done to one image, without
chance; `operations` and `policies` draw its amounts; `mixing` is about pairs of examples,
`scenes` about the boxes of objects;
`pipeline` makes one function of a policy from the config, which moves an image's targets with it.
`views` is about testing: several looks at one image.
"""

from flaxcnn.data.augment.mixing import Mixed, for_targets
from flaxcnn.data.augment.pipeline import Augment, augmented_shape, make_augment, read_policy
from flaxcnn.data.augment.progressive import find_stages, policy_at
from flaxcnn.data.augment.settings import freeze_policy
from flaxcnn.data.augment.views import View, average_over, read_views, viewed_shape

__all__ = [
    "Augment",
    "Mixed",
    "View",
    "augmented_shape",
    "average_over",
    "find_stages",
    "for_targets",
    "freeze_policy",
    "make_augment",
    "policy_at",
    "read_policy",
    "read_views",
    "viewed_shape",
]
