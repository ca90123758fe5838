"""CamVid, 11 classes of a street seen from a car: FCN-32s, 16s and 8s on MobileNetV2, in stages.

flaxcnn train camvid_fcn8s --config.data.source=masks:PATH
with --config.model.weights=file:mobilenet_v2_1.0_224_q8.safetensors,into=backbone

Measured (two threads of an AMD EPYC, AVX-512, other work on the machine; Python 3.11.7, jaxlib
0.10.1; seed 0): mean IoU 0.4107, 0.5054 and 0.5349 on the test split after each stage, twelve
minutes of steps at median rates (docs/segmentation.md).
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
            name="fcn32s",
            weights="file:mobilenet_v2_1.0_224_q8.safetensors,into=backbone",
            kwargs=ConfigDict({"backbone": "mobilenet_v2_1.00_224"}),
        ),
        task=TaskConfig(name="segmentation"),
        data=DataConfig(
            source="masks:camvid",
            batch_size=8,
            eval_batch_size=16,
            normalization=((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # of the weights
            augment=(
                ("flip",),
                ("random_resized_crop", (0.3, 1.0)),
                ("brightness", 0.4),
                ("contrast", 0.4),
                ("saturation", 0.4),
            ),
        ),
        optimizer=OptimizerConfig(
            name="adam",
            learning_rate=5e-4,
            weight_decay=1e-4,
            schedule=ScheduleConfig("cosine", warmup_epochs=0.5),
            freeze="backbone/.*bn",  # the weights' BatchNorm is folded into their kernels
        ),
        epochs=15,
        steps_per_call=15,
        stages=(
            ("32s", {}),
            ("16s", {"model.name": "fcn16s"}),
            ("8s", {"model.name": "fcn8s", "epochs": 25}),
        ),
    )
