"""MobileNetV2 with ImageNet's weights on photographs, a folder for each class: head, last block.

flaxcnn train cats_dogs_mobilenet_v2 --config.data.source=folder:PATH

The weights are Keras' (14 MB, downloaded once; reading them needs `pip install 'flaxcnn[keras]'`);
others: --config.model.weights=file:PATH. Measured with 8-bit ones on 300 photographs each of cats
and dogs: 96.67 % of 250 others, then 97.07 % (three seeds, docs/results.md, with its hardware).
"""

from flaxcnn.training import Config, DataConfig, ModelConfig, OptimizerConfig


def get_config() -> Config:
    """Twenty epochs of a new head, then five of the last block with it, both on features."""
    return Config(
        model=ModelConfig("mobilenet_v2_1.00_224", weights="keras_in1k"),
        data=DataConfig(
            source="folder:cats-dogs",  # a folder per class, or train/, validation/ and test/
            normalization="weights",  # 224x224, as ImageNet's were
            batch_size=32,
            eval_batch_size=64,
            cache_features=True,
            on_bad_image="skip",
        ),
        optimizer=OptimizerConfig(name="adam", learning_rate=1e-3, freeze="(?!classifier).*"),
        epochs=20,
        stages=(
            ("head", {}),
            (
                "last",
                {
                    # BatchNorm keeps ImageNet's statistics: a few hundred images are no others.
                    "optimizer.freeze": "stem|stage[1-6]|.*_bn",
                    "optimizer.learning_rate": 1e-5,
                    "epochs": 5,
                },
            ),
        ),
    )
