"""Your own photographs, from a folder for each class: ResNet-18 from scratch, 96x96 pixels.

flaxcnn train photos --config.data.source=folder:PATH
"""

from flaxcnn.training import Config, DataConfig, LossConfig, ModelConfig, OptimizerConfig


def get_config() -> Config:
    """Forty epochs of AdamW with a cosine schedule, random crops and colours."""
    return Config(
        model=ModelConfig(name="resnet18"),  # any of `flaxcnn list`
        data=DataConfig(
            source="folder:photos",  # train/, validation/, test/ with a folder per class, or one
            image_size=(96, 96),
            channels=3,
            batch_size=32,
            on_bad_image="skip",
            augment=(
                ("random_resized_crop", (0.3, 1.0)),
                ("flip",),
                ("brightness", 0.3),
                ("contrast", 0.3),
            ),
        ),
        loss=LossConfig(label_smoothing=0.1),
        optimizer=OptimizerConfig(
            name="adamw", learning_rate=0.001, weight_decay=0.05, warmup_epochs=2.0
        ),
        epochs=40,
    )
