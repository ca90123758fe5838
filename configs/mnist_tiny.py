"""MNIST with fewer than 10,000 parameters.

flaxcnn train mnist_tiny

Measured (one core of an AMD EPYC, AVX2; Python 3.11.7, jaxlib 0.10.1; three seeds): test accuracy
99.57 % +- 0.03 with 9,778 parameters, 99.51 % +- 0.03 without the shifted views, in 28 to 30
minutes.
"""

from flaxcnn.training import (
    Config,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
)


def get_config() -> Config:
    """Forty epochs of AdamW with a one-cycle schedule, small affine maps, averaged weights."""
    return Config(
        model=ModelConfig(name="mnist_tiny"),
        data=DataConfig(
            source="tfds:mnist",
            batch_size=64,
            validation=0.05,
            augment=(("affine", 10, 0.08, (0.9, 1.1), 0.0, "edge"),),
            views=(("shift", 1),),
        ),
        loss=LossConfig(label_smoothing=0.1),
        optimizer=OptimizerConfig(
            name="adamw",
            learning_rate=0.01,
            weight_decay=0.01,
            schedule=ScheduleConfig("one_cycle"),
            ema_decay=0.999,
        ),
        epochs=40,
    )
