"""The configs that come with flaxcnn for two classes: what is frozen, and the book's sizes."""

import jax
import numpy as np

from flaxcnn.tasks.task import Setting
from flaxcnn.training import load_config
from flaxcnn.training.features import find_cut
from flaxcnn.training.parts import make_freeze, make_model, make_task
from flaxcnn.training.stages import read_stages


def count(tree):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def trace(config, image_shape):
    """The network and the shapes of its variables, for cats and dogs."""
    model = make_model(config, make_task(config, Setting(("cats", "dogs"), image_shape)), None)
    images = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
    return model, jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)


def test_vgg16_has_the_sizes_of_the_book():
    """Chollet 2017, section 5.3: the base, Dense(256) on 4 x 4 x 512 maps, one output."""
    config = load_config("cats_dogs_vgg16")
    assert config.data.image_size == (150, 150)
    _, variables = trace(config, (150, 150, 3))
    params = variables["params"]
    head, block5 = (make_freeze(stage.config).trained(params) for stage in read_stages(config))
    assert set(head) == {"fc1", "classifier"}
    assert (count(head["fc1"]), count(head["classifier"])) == (2_097_408, 257)
    assert count(params) - count(head) == 14_714_688
    assert set(block5) - set(head) == {f"stage5_conv{i}" for i in (1, 2, 3)}


def test_mobilenet_v2_is_cut_before_its_head_and_before_its_last_block():
    config = load_config("cats_dogs_mobilenet_v2")
    model, variables = trace(config, (224, 224, 3))
    cuts = [
        find_cut(model, variables, make_freeze(stage.config), (224, 224, 3))[0]
        for stage in read_stages(config)
    ]
    assert cuts == ["dropout", "stage7_block1"]
