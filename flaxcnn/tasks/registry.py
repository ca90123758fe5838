"""The tasks by the name that `task.name` has in a config."""

import importlib
from typing import Any

from flaxcnn.errors import UserError

# Where each one's class is, to be imported when it is asked for. `make(Setting, **settings)` makes
# a task: the settings of classification are the config's `loss`, of any other its `task.kwargs`.
TASKS = {
    "classification": "flaxcnn.tasks.classification.Classification",
    "detection": "flaxcnn.tasks.detection.detection.Detection",
    "localization": "flaxcnn.tasks.localization.Localization",
    "pose": "flaxcnn.tasks.pose.Pose",
    "segmentation": "flaxcnn.tasks.segmentation.Segmentation",
}


def find_task(name: str) -> Any:
    """The class of the task `name`. Raises UserError if there is none."""
    if name not in TASKS:
        raise UserError(f"task.name must be one of {', '.join(TASKS)}, got {name!r}")
    module, _, kind = TASKS[name].rpartition(".")
    return getattr(importlib.import_module(module), kind)
