"""Joints of bodies by regression, refined on crops around them (DeepPose, Toshev, Szegedy 2014).

flaxcnn train lspet_deeppose --config.data.source=keypoints:PATH
with --config.model.weights=file:mobilenet_v2_1.0_224_q8.safetensors,into=backbone

PATH holds annotations.json, COCO's keypoint JSON or {"joint_names": ..., "train": ..., "test": ...}
(docs/localization_pose.md). Joints are mean places of maps: the paper's dense layers want many more
images than 640 (model.name=deeppose, and first=deeppose, second=deeppose of the cascade).

Measured on LSPET's test split (one thread of an AMD EPYC, AVX-512, a fifth to a third of a core;
Python 3.11.7, jaxlib 0.10.1; seed 0): PCK@0.2 0.2437 after the first stage and 0.2710 after the
second, the mean pose 0.0348; PCP 0.2445, 0.2589 and 0.0149. 12 and 8 minutes of steps at 33.5 and
5.2 images/s (medians).
"""

from ml_collections import ConfigDict

from flaxcnn.training import (
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TaskConfig,
)

STILL = "backbone/(.*bn|stem|stage[1-3])"  # the weights' BatchNorm is folded into their kernels
NETWORK = {"backbone": "mobilenet_v2_1.00_224"}


def get_config() -> Config:
    """Forty epochs of the first stage, four of the second; AdamW and L1 on images of 160x160."""
    return Config(
        model=ModelConfig(
            name="integral_pose",
            weights="file:mobilenet_v2_1.0_224_q8.safetensors,into=backbone",
            kwargs=ConfigDict(NETWORK),
        ),
        data=DataConfig(
            source="keypoints:lspet",
            image_size=(160, 160),
            resize="pad",  # keeps the proportions of bodies
            channels=3,
            batch_size=16,
            eval_batch_size=32,
            normalization=((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # of the weights
            augment=(
                ("flip",),
                ("affine", 60, 0.05, (0.85, 1.3), 0.0, 0.0),
                ("brightness", 0.3),
                ("contrast", 0.3),
            ),
        ),
        task=TaskConfig("pose", ConfigDict({"loss": "l1"})),
        optimizer=OptimizerConfig(
            name="adamw",
            learning_rate=1e-3,
            weight_decay=1e-3,
            freeze=STILL,
            schedule=ScheduleConfig("one_cycle"),
        ),
        epochs=40,
        stages=(
            ("first", {}),
            (
                "second",
                {
                    "model.name": "deeppose_cascade",
                    "model.weights": "run:previous,into=backbone",
                    "model.kwargs": {
                        "first": "integral_pose",
                        "first_kwargs": NETWORK,
                        "second": "integral_pose",
                        "second_kwargs": NETWORK,
                        "share": 0.35,
                        "crop": 64,
                        "jitter": 0.05,
                    },
                    "optimizer.freeze": f"stage1|stage2/{STILL}",
                    "optimizer.learning_rate": 5e-4,
                    "epochs": 4,
                },
            ),
        ),
    )
