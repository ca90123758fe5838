"""scikit-learn's 1,797 handwritten digits, 8x8: the run that needs no download.

    flaxcnn train

Measured (2 cores of an AMD EPYC, AVX2; Python 3.11.7, jaxlib 0.10.1): test accuracy 99.39 % +- 0.23
over the seeds 0 to 4 (99.72 with seed 0, 99.17 at the least), 23 s of processor time, compilation
included.
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
    """A LeNet-style network with Adam, a cosine schedule, label smoothing and averaged weights."""
    return Config(
        model=ModelConfig(name="digits_cnn", kwargs=ConfigDict({"maps_dropout": 0.25})),
        data=DataConfig(source="digits", batch_size=32),
        loss=LossConfig(label_smoothing=0.1),
        optimizer=OptimizerConfig(
            name="adam",
            learning_rate=0.003,
            schedule=ScheduleConfig(warmup_epochs=1.0),
            ema_decay=0.99,
        ),
        epochs=30,
    )
