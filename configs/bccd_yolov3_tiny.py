"""BCCD, blood cells of three kinds: YOLOv3's tiny form on MobileNetV2, images of 256x192.

flaxcnn train bccd_yolov3_tiny --config.data.source=coco:PATH
with --config.model.weights=file:mobilenet_v2_1.0_224_q8.safetensors,into=backbone

Measured (one thread of an AMD EPYC, AVX-512, other work on the machine; Python 3.11.7, jaxlib
0.10.1): mAP@0.5 0.8125, 0.8516 and 0.8205 on the test split with seeds 0 to 2, mean 0.828, 8.5 to
16 minutes each (docs/detection.md).
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


def get_config() -> Config:
    """Adam on random parts of images; the backbone's BatchNorm stays as it is."""
    return Config(
        model=ModelConfig(
            name="yolo_v3_tiny",
            weights="file:mobilenet_v2_1.0_224_q8.safetensors,into=backbone",
            kwargs=ConfigDict(
                {
                    "backbone": "mobilenet_v2_1.00_224",
                    "backbone_kwargs": {"out_indices": (2, 3)},
                    "strides": (16, 8),  # platelets are 16 pixels wide
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
                "priors": (
                    ((12, 12), (16, 16), (24, 26)),  # stride 8: platelets
                    ((36, 36), (46, 43), (86, 78)),  # stride 16: red and white cells
                ),
            },
        ),
        data=DataConfig(
            source="coco:bccd",
            image_size=(192, 256),
            resize="pad",
            batch_size=8,
            eval_batch_size=16,
            normalization=((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # of the weights
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
            # The weights' BatchNorm is folded into their kernels; maps down to stride 8 stay.
            freeze="backbone/(.*bn|stem|stage[123])",
            ema_decay=0.998,
        ),
        epochs=25,
        steps_per_call=25,
    )
