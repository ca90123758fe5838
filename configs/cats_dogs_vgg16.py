"""VGG-16 with ImageNet's weights on cats and dogs, as in Chollet 2017, section 5.3: head, block 5.

flaxcnn train cats_dogs_vgg16 --config.data.source=folder:PATH

Expected, for the book's 1,000 training images a class: 96 % on validation images with the base
frozen, 97 % with block 5 trained too. Not measured here: a step takes seconds on a CPU. Parameters
of the base 14,714,688, of the head 2,097,408 + 257. The weights are Keras' (59 MB, downloaded once;
reading them needs `pip install 'flaxcnn[keras]'`). What differs from the book: images are
normalised as for the weights, and there is no shear.
"""

from flaxcnn.training import Config, DataConfig, LossConfig, ModelConfig, OptimizerConfig

WEIGHTS = (
    "https://storage.googleapis.com/tensorflow/keras-applications/vgg16/"
    "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5#md5=6d6bbae143d832006294945121d1f1eb"
)


def get_config() -> Config:
    """Thirty epochs of the head, then a hundred of block 5 with it; mirrored and moved images."""
    return Config(
        model=ModelConfig(
            "vgg16",
            weights=WEIGHTS,
            kwargs={"hidden": (256,), "map_side": 4, "dropout": 0.0, "num_classes": 1},
        ),
        data=DataConfig(
            source="folder:cats-dogs",
            image_size=(150, 150),
            normalization="weights",
            batch_size=20,
            augment=(("flip",), ("affine", 40, 0.2, (0.8, 1.2), 0)),
        ),
        loss=LossConfig(name="binary_cross_entropy"),
        optimizer=OptimizerConfig(name="rmsprop", learning_rate=2e-5),
        stages=(
            ("head", {"optimizer.freeze": "stage[1-5]", "epochs": 30}),
            (
                "block5",
                {
                    "optimizer.freeze": "stage[1-4]",
                    "optimizer.learning_rate": 1e-5,
                    "epochs": 100,
                },
            ),
        ),
    )
