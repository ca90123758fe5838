"""MNIST digits on a canvas with clutter: the digit and the box around it.

python docs/make_mnist_scenes.py mnist_scenes
flaxcnn train mnist_localization
"""

from flaxcnn.training import (
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TaskConfig,
)


def get_config() -> Config:
    """Ten epochs of Adam with a one-cycle schedule."""
    return Config(
        model=ModelConfig(
            name="mnist_tiny",
            kwargs={
                "maps": ((16, 3), "pool", (32, 3), "pool", (64, 3), "pool", (64, 3), "pool"),
                "hidden": (128,),
                "global_pool": False,
            },
        ),
        data=DataConfig(source="boxes:mnist_scenes", batch_size=64),
        task=TaskConfig("localization"),
        optimizer=OptimizerConfig(
            name="adam", learning_rate=0.003, schedule=ScheduleConfig("one_cycle")
        ),
        epochs=10,
    )
