"""Loss: cross-entropy against mean squared error, the perceptron 3072-1024-256-10 on CIFAR-10

An unpublished notebook compares the two. Here: plain SGD, batches of 64, 10 epochs, 5,000 of the
training images held out for the validation curve. The gradient of the squared error is much smaller
than that of cross-entropy, so it is shown at the same rate of 0.01 and at ten times that rate. The
two losses in the curves and the table are in units of their own.

At the same rate the squared error is 10 points behind; most of that is the rate: at ten times it,
1.1 points are left. All three seeds agree.
"""

from flaxcnn.study import Study
from flaxcnn.training import Config, DataConfig, ModelConfig, OptimizerConfig, ScheduleConfig


def get_study() -> Study:
    """Two losses; the squared error at two learning rates."""
    config = Config(
        model=ModelConfig(name="cifar_mlp"),
        data=DataConfig(source="tfds:cifar10", batch_size=64),
        optimizer=OptimizerConfig(
            name="sgd", learning_rate=0.01, schedule=ScheduleConfig("constant")
        ),
        epochs=10,
    )
    return Study(
        config,
        cases={
            "cross-entropy": {"loss.name": "cross_entropy"},
            "squared error": {"loss.name": "mse"},
            "squared error, rate 0.1": {"loss.name": "mse", "optimizer.learning_rate": 0.1},
        },
        quick={"epochs": 1},
    )
