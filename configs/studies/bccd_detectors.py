"""Blood cells: YOLOv1, YOLOv2, YOLOv3 and SSD on one backbone

BCCD (205, 87 and 72 images of 320x240, three kinds of cells), images of 256x192, heads of about the
same cost on MobileNetV2 with Google's 8-bit ImageNet weights, whose maps down to stride 8 stay as
they are; the recipe of configs/bccd_yolov3_tiny.py. Source and weights are
BCCD=coco:PATH and WEIGHTS=file:mobilenet_v2_1.0_224_q8.safetensors,into=backbone in the
environment.
"""

import os

from ml_collections import ConfigDict

from flaxcnn.study import Study
from flaxcnn.training import (
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TaskConfig,
)

BACKBONE = {"backbone": "mobilenet_v2_1.00_224"}


def get_study() -> Study:
    """One seed of each kind."""
    config = Config(
        model=ModelConfig(
            "yolo_v3_tiny",
            weights=os.environ.get(
                "WEIGHTS", "file:mobilenet_v2_1.0_224_q8.safetensors,into=backbone"
            ),
            kwargs=ConfigDict(
                BACKBONE
                | {
                    "backbone_kwargs": {"out_indices": (2, 3)},
                    "strides": (16, 8),
                    "features": 96,
                    "momentum": 0.97,
                }
            ),
        ),
        task=TaskConfig(
            "detection",
            {
                "method": "yolo_v3",
                "stride": 16,
                "priors": (((12, 12), (16, 16), (24, 26)), ((36, 36), (46, 43), (86, 78))),
            },
        ),
        data=DataConfig(
            source=os.environ.get("BCCD", "coco:bccd"),
            image_size=(192, 256),
            resize="pad",
            batch_size=8,
            eval_batch_size=16,
            normalization=((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
            augment=(
                ("flip",),
                ("vertical_flip",),
                ("random_resized_crop", (0.5, 1.0)),
                ("brightness", 0.3),
                ("contrast", 0.3),
                ("saturation", 0.3),
            ),
        ),
        optimizer=OptimizerConfig(
            name="adam",
            learning_rate=2e-3,
            weight_decay=1e-4,
            schedule=ScheduleConfig("cosine", warmup_epochs=2.0),
            rates={"backbone/*": 0.3},
            freeze="backbone/(.*bn|stem|stage[123])",
            ema_decay=0.998,
        ),
        epochs=25,
        steps_per_call=25,
    )
    ssd_boxes = {
        "maps": ((24, 32), (12, 16), (6, 8)),
        "scales": (0.07, 0.17, 0.36, 0.6),
        "ratios": ((2,), (2, 3), (2, 3)),
        "strides": None,
    }
    return Study(
        config,
        cases={
            "YOLOv3 tiny": {},
            "YOLOv2": {
                "model.name": "yolo_v2",
                "model.kwargs": BACKBONE
                | {"features": (128, 128, 128), "passthrough": "stack", "momentum": 0.97},
                "task.kwargs": {"method": "yolo_v2", "priors": 5},
            },
            "YOLOv1": {
                "model.name": "yolo_v1",
                "model.kwargs": BACKBONE
                | {
                    "features": (128, 128, 128, 128),
                    "downsample": False,
                    "hidden": None,
                    "batch_norm": True,
                    "momentum": 0.97,
                },
                "task.kwargs": {"method": "yolo_v1"},
            },
            "SSD": {
                "model.name": "ssd300",
                "model.kwargs": BACKBONE
                | {
                    "strides": (8, 16, 32),
                    "reduced": 0,
                    "normalize": False,
                    "extras": (),
                    "extra_strides": (),
                    "num_anchors": (4, 6, 6),
                },
                "task.kwargs": {"method": "ssd", "default_boxes": ssd_boxes},
            },
        },
        seeds=1,
    )
