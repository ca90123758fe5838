"""Convolutions: the 5x5 network on CIFAR-10, then batch normalisation and pooling, then dropout

An unpublished notebook builds its network in three steps: three convolutions of 5x5 and dense
layers of 1024 and 256; batch normalisation and pooling after them; dropout. Here: batches of 128,
momentum 0.9, peak rate 0.01 with a cosine schedule, 5,000 of the training images held out for the
validation curve.

Three epochs and one seed, as an epoch takes 11 to 16 minutes of one core: normalisation and pooling
are worth 2.4 points with a sixteenth of the parameters and two thirds of the time. Dropout (a
quarter of the maps, half of the dense features) does not pay within three epochs, where little is
overfitted yet: 16 points less. Cats have the lowest F1 of all classes in each network.
"""

from flaxcnn.study import Study
from flaxcnn.training import Config, DataConfig, OptimizerConfig


def get_study() -> Study:
    """Three networks, everything else equal."""
    config = Config(
        data=DataConfig(source="tfds:cifar10", batch_size=128),
        optimizer=OptimizerConfig(name="momentum", learning_rate=0.01),
        epochs=3,
    )
    dropout = {"model.kwargs.dropout": 0.5, "model.kwargs.maps_dropout": 0.25}
    return Study(
        config,
        cases={
            "5x5": {"model.name": "cifar_cnn_5x5"},
            "+ normalisation, pooling": {"model.name": "cifar_cnn_5x5_bn"},
            "+ dropout": {"model.name": "cifar_cnn_5x5_bn"} | dropout,
        },
        seeds=1,
        quick={"epochs": 1, "model.name": "cifar_cnn_k2"},
    )
