"""MNIST as well as one network of fewer than 500,000 parameters does it.

flaxcnn train mnist_best

All 60,000 images are trained on, so nothing is validated on the way.

Measured (one core of an AMD EPYC, AVX2, other work on the other; Python 3.11.7, jaxlib 0.10.1;
three seeds): test accuracy 99.75 % +- 0.02 with 279,818 parameters, 99.75 % +- 0.04 without the
shifted views, in 53 to 59 minutes of training.
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
    """Twenty epochs of AdamW with a one-cycle schedule, affine maps, dropout, averaged weights."""
    return Config(
        model=ModelConfig(name="mnist_cnn_280k", kwargs=ConfigDict({"maps_dropout": 0.25})),
        data=DataConfig(
            source="tfds:mnist",
            batch_size=64,
            validation=0.0,
            augment=(("affine", 10, 0.1, (0.9, 1.1), 0.0, "edge"),),
            views=(("shift", 1),),
        ),
        loss=LossConfig(label_smoothing=0.1),
        optimizer=OptimizerConfig(
            name="adamw",
            learning_rate=0.003,
            weight_decay=0.05,
            schedule=ScheduleConfig("one_cycle"),
            ema_decay=0.999,
        ),
        epochs=20,
    )
