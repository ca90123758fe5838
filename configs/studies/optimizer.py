"""Optimizer: SGD against Adam, the perceptron 3072-1024-256-10 on CIFAR-10

An unpublished notebook says that SGD beats Adam, and that Adam does not converge. Here: batches of
64, 10 epochs, 5,000 of the training images held out for the validation curve; SGD at a rate of
0.01, Adam at its usual 0.001, at a tenth of it, and at SGD's 0.01.

Neither claim holds in general. At a tenth of its usual rate Adam is 1.6 points ahead of SGD, with
every seed; at its usual rate the two are equal within the spread of the seeds. At SGD's rate of
0.01 Adam indeed does not converge: two of three seeds end at one in ten, the third at 17 %.
"""

from flaxcnn.study import Study
from flaxcnn.training import Config, DataConfig, ModelConfig, OptimizerConfig, ScheduleConfig


def get_study() -> Study:
    """SGD, and Adam at three learning rates."""
    config = Config(
        model=ModelConfig(name="cifar_mlp"),
        data=DataConfig(source="tfds:cifar10", batch_size=64),
        optimizer=OptimizerConfig(name="adam", schedule=ScheduleConfig("constant")),
        epochs=10,
    )
    return Study(
        config,
        cases={
            "SGD, rate 0.01": {"optimizer.name": "sgd", "optimizer.learning_rate": 0.01},
            "Adam, rate 0.0001": {"optimizer.learning_rate": 0.0001},
            "Adam, rate 0.001": {"optimizer.learning_rate": 0.001},
            "Adam, rate 0.01": {"optimizer.learning_rate": 0.01},
        },
        quick={"epochs": 1},
    )
