"""MNIST as well as one network of fewer than 500,000 parameters does it.

python train.py --config configs/mnist_best.py
"""

from ml_collections import ConfigDict

from flaxcnn.training import Config, DataConfig, LossConfig, ModelConfig, OptimizerConfig


def get_config() -> Config:
    """Twenty epochs of AdamW with a one-cycle schedule, affine maps, dropout, averaged weights."""
    return Config(
        model=ModelConfig(name="mnist_cnn_280k", kwargs=ConfigDict({"maps_dropout": 0.25})),
        data=DataConfig(
            source="tfds:mnist",
            batch_size=64,
            validation=0.05,
            augment=(("affine", 10, 0.1, (0.9, 1.1), 0.0, "edge"),),
            views=(("shift", 1),),
        ),
        loss=LossConfig(label_smoothing=0.1),
        optimizer=OptimizerConfig(
            name="adamw",
            learning_rate=0.003,
            weight_decay=0.05,
            schedule="one_cycle",
            ema_decay=0.999,
        ),
        epochs=20,
    )
