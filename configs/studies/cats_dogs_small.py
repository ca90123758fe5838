"""Cats and dogs from 300 images per class, from scratch: without and with augmentation and dropout

The network of Chollet's book (section 5.2), images of 150x150 pixels, 30 epochs of Adam at a rate
of 0.0005 with a cosine schedule, batches of 20. The folder `cats-dogs` (train, validation and test,
each with a folder per class) is looked for where the command is run.

Without augmentation the network learns its 600 images by heart: the training loss vanishes, and the
validation accuracy stays near 60 %. Augmentation is worth 12 points; dropout on top of it makes no
difference that 250 test images could show.
"""

from flaxcnn.study import Study
from flaxcnn.training import Config, DataConfig, ModelConfig, OptimizerConfig

AUGMENT = (("flip",), ("affine", 20, 0.1, (0.8, 1.2), 10), ("brightness", 0.2))


def get_study() -> Study:
    """Plain, with augmentation, with augmentation and dropout."""
    config = Config(
        model=ModelConfig(name="cats_dogs_cnn"),
        data=DataConfig(source="folder:cats-dogs", image_size=(150, 150), batch_size=20),
        optimizer=OptimizerConfig(name="adam", learning_rate=0.0005),
        epochs=30,
    )
    return Study(
        config,
        cases={
            "plain": {},
            "augmentation": {"data.augment": AUGMENT},
            "augmentation, dropout": {
                "model.name": "cats_dogs_cnn_dropout",
                "data.augment": AUGMENT,
            },
        },
        quick={"epochs": 1},
    )
