"""scikit-learn's 1,797 handwritten digits, 8x8: the run that needs no download.

python train.py
"""

from flaxcnn.training import Config, DataConfig, ModelConfig, OptimizerConfig


def get_config() -> Config:
    """A LeNet-style network with Adam and a cosine schedule."""
    return Config(
        model=ModelConfig(name="digits_cnn"),
        data=DataConfig(source="digits", batch_size=32),
        optimizer=OptimizerConfig(name="adam", learning_rate=0.003, warmup_epochs=1.0),
        epochs=30,
    )
