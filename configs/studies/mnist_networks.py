"""MNIST: convolutional against fully connected

An unpublished notebook reports 99.1 % for its convolutional network and 97.8 % for a fully
connected one. Here: both with Adam at a peak rate of 0.002 and a one-cycle schedule, 5 epochs,
batches of 64, 3,000 of the training images held out for the validation curve. The third network has
fewer than 10,000 parameters.

The notebook's order holds, and both networks are ahead of its figures. Convolutions with a
seventieth of the parameters are ahead of the dense layers, too.
"""

from flaxcnn.study import Study
from flaxcnn.training import Config, DataConfig, ModelConfig, OptimizerConfig, ScheduleConfig


def get_study() -> Study:
    """Three networks, everything else equal."""
    config = Config(
        model=ModelConfig(name="mnist_mlp_512"),
        data=DataConfig(source="tfds:mnist", validation=0.05),
        optimizer=OptimizerConfig(
            name="adam", learning_rate=0.002, schedule=ScheduleConfig("one_cycle")
        ),
        epochs=5,
    )
    return Study(
        config,
        cases={
            "fully connected": {},
            "convolutional": {"model.name": "mnist_cnn_220k"},
            "convolutional, small": {"model.name": "mnist_tiny"},
        },
        source={"fully connected": 0.978, "convolutional": 0.991},
        quick={"epochs": 1},
    )
