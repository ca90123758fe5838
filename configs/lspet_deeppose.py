"""Joints of bodies by regression (DeepPose, Toshev and Szegedy 2014), refined on crops around them.

flaxcnn train lspet_deeppose --config.data.source=keypoints:PATH

PATH holds annotations.json, COCO's keypoint JSON or {"joint_names": ..., "train": ..., "test": ...}
(docs/localization_pose.md). The paper's network for both stages, which wants many more images:
--config.model.kwargs.first=deeppose --config.model.kwargs.second=deeppose with crops and images of
220. First stages may start from published weights: --config.model.weights=TAG,into=backbone.
"""

from flaxcnn.training import (
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TaskConfig,
)


def get_config() -> Config:
    """Sixty epochs of Adam; mirrored, turned and scaled images of 128x128."""
    return Config(
        model=ModelConfig(
            name="deeppose_cascade",
            kwargs={
                "first": "mobilenet_v2",
                "second": "mnist_tiny",
                "second_kwargs": {
                    "maps": ((16, 3), "pool", (32, 3), "pool", (64, 3), "pool"),
                    "hidden": (128,),
                    "global_pool": False,
                },
                "share": 0.35,
                "crop": 24,
                "jitter": 0.07,
            },
        ),
        data=DataConfig(
            source="keypoints:lspet",
            image_size=(128, 128),
            resize="pad",  # keeps the proportions of bodies
            channels=3,
            batch_size=16,
            eval_batch_size=64,
            augment=(("flip",), ("affine", 40, 0.05, (0.85, 1.3))),
        ),
        task=TaskConfig("pose", {"loss": "smooth_l1"}),
        optimizer=OptimizerConfig(
            name="adam", learning_rate=0.0003, schedule=ScheduleConfig("one_cycle")
        ),
        epochs=60,
    )
