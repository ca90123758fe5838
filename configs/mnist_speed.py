"""MNIST to 99 %, on average, in one epoch.

flaxcnn train mnist_speed

All 60,000 images are trained on, so nothing is validated on the way.

Measured (2 cores of an AMD EPYC, AVX2; Python 3.11.7, jaxlib 0.10.1; three seeds): test accuracy
99.04 % +- 0.14, 98.89 the lowest, in 26 to 34 s of training.
"""

from ml_collections import ConfigDict

from flaxcnn.training import (
    Config,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
)


def get_config() -> Config:
    """One epoch of Adam with a one-cycle schedule, batch normalisation and label smoothing."""
    return Config(
        model=ModelConfig(name="mnist_cnn_220k", kwargs=ConfigDict({"batch_norm": True})),
        data=DataConfig(source="tfds:mnist", batch_size=64, validation=0.0),
        loss=LossConfig(label_smoothing=0.1),
        optimizer=OptimizerConfig(
            name="adam", learning_rate=0.005, schedule=ScheduleConfig("one_cycle")
        ),
        epochs=1,
    )
