"""Fashion-MNIST with 492,616 parameters: a narrow airbench94, in twenty epochs.

flaxcnn train fashion_mnist_best

The recipe of `cifar10_speed.py`. All 60,000 images are trained on, so nothing is validated on the
way.

Measured (one core, other work on the other: seed 0 on an AMD EPYC, AVX2, seeds 1 and 2 on an Intel
Xeon at 2.5 GHz; Python 3.11.7, jaxlib 0.10.1): test accuracy 94.75 % +- 0.20 over six views (94.52,
94.83, 94.90), 94.37 % +- 0.15 without, in 58, 73 and 62 minutes at their median rates. Of the
augmented training images they know 96.3 to 96.4 % in their last epoch. Lookahead did not move batch
statistics then, as it does now.
"""

from ml_collections import ConfigDict

from flaxcnn.training import (
    Config,
    DataConfig,
    LookaheadConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
)


def get_config() -> Config:
    """Twenty epochs of SGD with Nesterov momentum, lookahead and alternating flips."""
    momentum = 0.85
    learning_rate = 11.5 / (1 + 1 / (1 - momentum))
    return Config(
        model=ModelConfig(name="airbench94", kwargs=ConfigDict({"widths": (32, 128, 128)})),
        data=DataConfig(
            source="tfds:fashion_mnist",
            batch_size=1024,
            eval_batch_size=1000,
            validation=0.0,
            augment=(("alternating_flip",), ("crop", 2, "edge")),
            views=(("shift", 1), ("flip",)),
        ),
        loss=LossConfig(label_smoothing=0.2),
        optimizer=OptimizerConfig(
            name="nesterov",
            kwargs=ConfigDict({"momentum": momentum}),
            learning_rate=learning_rate,
            weight_decay=0.0153 / 11.5,
            schedule=ScheduleConfig(
                "linear", warmup_epochs=2.3, initial_fraction=0.2, final_fraction=0.07
            ),
            rates=ConfigDict({"*/bn*/bias": 64.0}),
            lookahead=LookaheadConfig(every=5),
        ),
        epochs=20,
    )
