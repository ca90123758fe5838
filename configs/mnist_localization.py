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
    """Fifteen epochs of Adam with a one-cycle schedule."""
    return Config(
        model=ModelConfig(
            name="mnist_tiny",
            kwargs={
                "maps": ((16, 3), "pool", (32, 3), "pool", (64, 3), "pool", (64, 3)),
                "hidden": (256,),
                "global_pool": False,
            },
        ),
        data=DataConfig(source="boxes:mnist_scenes", batch_size=64, augment=(("crop", 3, 0.0),)),
        task=TaskConfig("localization", {"box_weight": 50.0}),
        optimizer=OptimizerConfig(
            name="adam", learning_rate=0.002, schedule=ScheduleConfig("one_cycle")
        ),
        epochs=15,
    )
