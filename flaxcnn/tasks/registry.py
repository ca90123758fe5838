"""The tasks by the name that `task.name` has in a config."""

from typing import Any

from flaxcnn.errors import UserError
from flaxcnn.tasks.classification import Classification
from flaxcnn.tasks.detection.detection import Detection
from flaxcnn.tasks.localization import Localization
from flaxcnn.tasks.pose import Pose
from flaxcnn.tasks.segmentation import Segmentation

# What makes each: `make(Setting, **settings)`. Those of classification are the config's `loss`, of
# every other task its `task.kwargs`.
TASKS: dict[str, Any] = {
    "classification": Classification,
    "detection": Detection,
    "localization": Localization,
    "pose": Pose,
    "segmentation": Segmentation,
}


def find_task(name: str) -> Any:
    """The class of the task `name`. Raises UserError if there is none."""
    if name not in TASKS:
        raise UserError(f"task.name must be one of {', '.join(TASKS)}, got {name!r}")
    return TASKS[name]
