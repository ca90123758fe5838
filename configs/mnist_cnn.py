"""MNIST with the 220,234-parameter CNN of a Colab notebook (99.20 % there, on a GPU).

flaxcnn train mnist_cnn

Measured (2 cores of an AMD EPYC, AVX2; Python 3.11.7, jaxlib 0.10.1; seed 0): test accuracy
99.39 %, 2,580 images/s, 22 s per epoch.
"""

from flaxcnn.training import Config, DataConfig, ModelConfig, OptimizerConfig, ScheduleConfig


def get_config() -> Config:
    """Ten epochs of Adam with a one-cycle schedule."""
    return Config(
        model=ModelConfig(name="mnist_cnn_220k"),
        data=DataConfig(source="tfds:mnist", batch_size=64, validation=0.05),
        optimizer=OptimizerConfig(
            name="adam", learning_rate=0.002, schedule=ScheduleConfig("one_cycle")
        ),
        epochs=10,
    )
