"""ImageNet with ResNet-50 at 160 px: recipe A3 of "ResNet strikes back" (Wightman 2021, Table 2).

flaxcnn train imagenet_resnet50_a3 --config.data.source=folder:PATH

Data and precision as in imagenet_resnet50; in the paper 78.1 % at 224 px after 100 epochs. Unlike
there parts are cut out of the picture's central square, and all of it is tested, not 0.95; mixing
is drawn for each pair, not for each batch; RandAugment's strength does not vary; an example of two
classes has the average of their losses. Where 2,048 images a step are too many,
--config.optimizer.accumulate=8 divides them.

Not measured on ImageNet yet.
"""

from flaxcnn.training import (
    Config,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
)

MEAN_STD = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # of ImageNet, as torchvision has them


def get_config() -> Config:
    """A hundred epochs of LAMB with a cosine schedule and binary cross-entropy."""
    return Config(
        model=ModelConfig(name="resnet50"),
        data=DataConfig(
            source="tfds:imagenet2012",
            image_size=(224, 224),
            channels=3,
            batch_size=2048,
            on_bad_image="skip",
            normalization=MEAN_STD,
            augment=(
                ("random_resized_crop",),
                ("flip",),
                ("resize", 160, 160),
                ("randaugment", 2, 6),
                ("mixup_or_cutmix", 0.1, 1.0),
            ),
        ),
        loss=LossConfig(name="binary_cross_entropy"),
        optimizer=OptimizerConfig(
            name="lamb",
            learning_rate=0.008,
            weight_decay=0.02,
            schedule=ScheduleConfig("cosine", warmup_epochs=5.0),
        ),
        run=RunConfig(save_every_steps=200, workers=8),
        epochs=100,
    )
