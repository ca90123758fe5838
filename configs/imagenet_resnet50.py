"""ImageNet with ResNet-50 in 90 epochs: SGD with momentum, the rate divided by 10 (He 2015).

flaxcnn train imagenet_resnet50 --config.data.source=folder:PATH

The folder has train/ and validation/ (or val/) with a folder for each class. Without it the set is
tfds:imagenet2012, prepared as array_record in TFDS_DATA_DIR. On a GPU or TPU add
--config.precision=bfloat16 (float16 where there are no units for that, as on a T4). Fewer images a
step need a smaller rate: --config.data.batch_size=128 --config.optimizer.learning_rate=0.05.

Training images grow from 160 px to 192 after 60 epochs and are tested at 224 (Touvron 2019; Tan and
Le 2021), which is 0.58 of the arithmetic of training at 224. Unlike in the paper, parts are cut out
of the picture's central square. imagenet_resnet50_a3 is a recipe of 2021.

Not measured on ImageNet yet. Its short form on 2,000 generated photographs is a test
(tests/training/test_imagenet.py).
"""

from flaxcnn.training import (
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
)

MEAN_STD = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # of ImageNet, as torchvision has them


def get_config() -> Config:
    """Ninety epochs with a step schedule after five of warm-up (Goyal 2017)."""
    return Config(
        model=ModelConfig(name="resnet50"),
        data=DataConfig(
            source="tfds:imagenet2012",
            image_size=(224, 224),
            channels=3,
            batch_size=256,
            on_bad_image="skip",
            normalization=MEAN_STD,
            augment=(
                ("random_resized_crop",),
                ("flip",),
                ("progressive_resize", ((0, 160, 160), (60, 192, 192))),
            ),
        ),
        optimizer=OptimizerConfig(
            name="nesterov",
            learning_rate=0.1,  # for 256 images
            weight_decay=1e-4,
            schedule=ScheduleConfig("step", warmup_epochs=5.0, boundaries=(30.0, 60.0, 80.0)),
        ),
        run=RunConfig(save_every_steps=1000, workers=8),
        epochs=90,
    )
