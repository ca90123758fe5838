"""Imbalance: half of the airplanes and birds removed, and restored by flips

An unpublished notebook removes half of the training images of two classes of CIFAR-10 and restores
their number by mirror images. Here: the perceptron 3072-1024-256-10, plain SGD at a rate of 0.01,
batches of 64, 10 epochs, 5,000 of the training images held out for the validation curve; the last
case flips the images of all classes.

The overall accuracy hides it: half of the birds gone, their recall falls from 0.41 to 0.23, and the
images lost go to other animals; airplanes hold theirs. Mirror images bring the recall of birds back
to 0.41, drawing the classes equally often to 0.31. Flips of all classes are best overall, and leave
the birds where they are.
"""

from flaxcnn.study import Study
from flaxcnn.training import Config, DataConfig, ModelConfig, OptimizerConfig, ScheduleConfig

HALF = {"data.balance.subsample": {"airplane": 0.5, "bird": 0.5}}


def get_study() -> Study:
    """All images, half of two classes, and three ways to make up for it."""
    config = Config(
        model=ModelConfig(name="cifar_mlp"),
        data=DataConfig(source="tfds:cifar10", batch_size=64),
        optimizer=OptimizerConfig(
            name="sgd", learning_rate=0.01, schedule=ScheduleConfig("constant")
        ),
        epochs=10,
    )
    restored = {
        "data.balance.expand": {"airplane": 1, "bird": 1},
        "data.augment": (("flip",),),
        "data.augment_classes": ("airplane", "bird"),
    }
    return Study(
        config,
        cases={
            "all images": {},
            "half of two classes": HALF,
            "restored by flips": HALF | restored,
            "balanced sampler": HALF | {"data.balance.sampler": "balanced"},
            "flips of all": HALF | {"data.augment": (("flip",),)},
        },
        quick={"epochs": 1},
    )
