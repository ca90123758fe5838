"""Batch size: the perceptron 3072-1024-256-10 on CIFAR-10

An unpublished notebook trains it with batches of 32, 64 and 256 images and reports 56.13 % at 32,
and 9, 5 and 2 seconds per epoch on a Colab GPU. Here: plain SGD at a rate of 0.01 for 10 epochs,
5,000 of the training images held out for the validation curve.

Smaller batches learn more in an epoch, and overfit sooner: at 32 the training loss is still falling
after ten epochs, while the validation accuracy has been where it ends since the fifth. The
notebook's 56.13 % is not reached by plain SGD at this rate; the study of the best perceptron asks
what does. An epoch at 32 takes 1.7 times as long as at 256 on a core of a CPU, 4.5 times on the
notebook's GPU.
"""

from flaxcnn.study import Study, grid
from flaxcnn.training import Config, DataConfig, ModelConfig, OptimizerConfig, ScheduleConfig


def get_study() -> Study:
    """Three batch sizes, everything else equal."""
    config = Config(
        model=ModelConfig(name="cifar_mlp"),
        data=DataConfig(source="tfds:cifar10"),
        optimizer=OptimizerConfig(
            name="sgd", learning_rate=0.01, schedule=ScheduleConfig("constant")
        ),
        epochs=10,
    )
    return Study(
        config,
        cases=grid({"data.batch_size": (32, 64, 256)}),
        source={"batch_size=32": 0.5613},
        quick={"epochs": 1},
    )
