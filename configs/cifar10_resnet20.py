"""CIFAR-10 with ResNet-20 and the recipe of He 2016, section 4.2 (91.25 % there, table 6).

flaxcnn train cifar10_resnet20

64,000 steps of 128 images, the rate divided by 10 after 32,000 and 48,000; 5,000 images held out.
Beyond the borders the crops see the mean colour, as zeros are there after subtracting the mean.

Not trained to its end: 182 epochs of 6 minutes take some 18 hours of one core of an AMD EPYC
(AVX2; jaxlib 0.10.1). Validation accuracy after the first four, at the first rate (seed 0): 47.5,
59.1, 68.3 and 66.8 %.
"""

from flaxcnn.training import Config, DataConfig, ModelConfig, OptimizerConfig, ScheduleConfig


def get_config() -> Config:
    """The paper's momentum, weight decay, schedule and augmentation; 351 steps an epoch."""
    return Config(
        model=ModelConfig(name="cifar_resnet20"),
        data=DataConfig(
            source="tfds:cifar10",
            batch_size=128,
            augment=(("crop", 4, 0.47), ("flip",)),
        ),
        optimizer=OptimizerConfig(
            name="momentum",
            learning_rate=0.1,
            weight_decay=1e-4,
            schedule=ScheduleConfig("step", boundaries=(32_000 / 351, 48_000 / 351)),
        ),
        epochs=182,
    )
