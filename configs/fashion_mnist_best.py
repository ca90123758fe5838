"""Fashion-MNIST with 279,818 parameters.

python train.py --config configs/fashion_mnist_best.py

All 60,000 images are trained on, so nothing is validated on the way.

Measured (one core of an AMD EPYC, AVX2, other work on the other; Python 3.11.7, jaxlib 0.10.1; seed
0 alone): test accuracy 94.26 % over six views, 93.92 % without, in 79 minutes at its median rate.
It underfits: of the augmented training images it knows 94.2 % in the end.
"""

from ml_collections import ConfigDict

from flaxcnn.training import Config, DataConfig, LossConfig, ModelConfig, OptimizerConfig


def get_config() -> Config:
    """Thirty epochs of AdamW with a one-cycle schedule, flips, crops, erasing, averaged weights."""
    return Config(
        model=ModelConfig(name="mnist_cnn_280k", kwargs=ConfigDict({"maps_dropout": 0.25})),
        data=DataConfig(
            source="tfds:fashion_mnist",
            batch_size=64,
            validation=0.0,
            augment=(("flip",), ("crop", 2, "edge"), ("random_erasing", 0.25)),
            views=(("flip",), ("shift", 1)),
        ),
        loss=LossConfig(label_smoothing=0.1),
        optimizer=OptimizerConfig(
            name="adamw",
            learning_rate=0.003,
            weight_decay=0.05,
            schedule="one_cycle",
            ema_decay=0.999,
        ),
        epochs=30,
    )
