import jax
import jax.numpy as jnp
import numpy as np
import numpy_layers as layers
import pytest
from draw import draw_images
from drawn import draw_network, evaluate, init_shapes, relative_error

from flaxcnn.errors import UserError
from flaxcnn.models import create_model
from flaxcnn.weights.convert import convert, export


def forward(tensors, images, name):
    """The authors' Caffe files, by their names of layers."""

    def conv(x, layer, **kwargs):
        kernel = tensors[f"{layer}.weight"].transpose(2, 3, 1, 0)
        return layers.relu(layers.conv2d(x, kernel, tensors[f"{layer}.bias"], **kwargs))

    def pool(x, kind=layers.max_pool):
        return kind(x, 3, 2, ceil_mode=True)

    if name == "nin_imagenet":
        x = conv(conv(conv(images, "conv1", stride=4), "cccp1"), "cccp2")
        x = conv(conv(conv(pool(x), "conv2", padding=2), "cccp3"), "cccp4")
        x = conv(conv(conv(pool(x), "conv3", padding=1), "cccp5"), "cccp6")
        x = conv(pool(x), "conv4-1024", padding=1)
        x = conv(conv(x, "cccp7-1024"), "cccp8-1024")
    else:
        x = conv(conv(conv(images, "conv1", padding=2), "cccp1"), "cccp2")
        x = conv(conv(conv(pool(x), "conv2", padding=2), "cccp3"), "cccp4")
        x = conv(conv(conv(pool(x, layers.avg_pool), "conv3", padding=1), "cccp5"), "cccp6")
    return layers.global_avg_pool(x)


@pytest.mark.parametrize(
    ("name", "size"),
    [("nin_imagenet", (107, 96)), ("nin_cifar10", (32, 32)), ("nin_cifar10", (19, 14))],
)
def test_equals_numpy(name, size):
    images = draw_images(2, *size, 3)
    model, variables = draw_network(name, images)
    expected = forward(export(name, variables, "caffe"), images, name)
    logits = evaluate(model, variables, images)
    assert relative_error(logits, expected) < 1e-4
    assert (logits >= 0).all()  # the ReLU is before the average


def test_caffe_names_and_back():
    for name, classifier in (("nin_imagenet", "cccp8-1024"), ("nin_cifar10", "cccp6")):
        side = 39 if name == "nin_imagenet" else 4
        _, variables = draw_network(name, draw_images(1, side, side, 3), num_classes=7)
        tensors = export(name, variables, "caffe", num_classes=7)
        assert tensors[f"{classifier}.weight"].shape[0] == 7
        back = convert(name, tensors, "caffe", num_classes=7)
        assert jax.tree.all(jax.tree.map(np.array_equal, back, variables))


@pytest.mark.parametrize(("name", "smallest"), [("nin_imagenet", 39), ("nin_cifar10", 4)])
def test_smallest_images(name, smallest):
    model = create_model(name)
    images = jnp.zeros((1, smallest, smallest, 3))
    stages = jax.eval_shape(
        lambda x: model.clone(features_only=True).init_with_output(
            jax.random.key(0), x, train=False
        )[0],
        images,
    )
    assert stages[-1].shape[1:3] == (1, 1)
    with pytest.raises(UserError, match=f"NiN needs images of at least {smallest}x{smallest}"):
        init_shapes(model, images[:, 1:])


def test_dropout():
    images = draw_images(1, 32, 32, 3)
    model, variables = draw_network("nin_cifar10", images)
    train = jax.jit(lambda key: model.apply(variables, images, train=True, rngs={"dropout": key}))
    assert not np.allclose(train(jax.random.key(0)), train(jax.random.key(1)))
