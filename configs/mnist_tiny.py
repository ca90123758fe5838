"""MNIST with fewer than 10,000 parameters.

python train.py --config configs/mnist_tiny.py
"""

from flaxcnn.training import Config, DataConfig, LossConfig, ModelConfig, OptimizerConfig


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
            schedule="one_cycle",
            ema_decay=0.999,
        ),
        epochs=40,
    )
