import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from flaxcnn.analysis.deconvnet import find_patches, reconstruct
from flaxcnn.analysis.maximization import maximize_activation
from flaxcnn.errors import UserError
from flaxcnn.layers import Conv, max_pool


class Net(nn.Module):
    """Two convolutions with ReLU, a 2x2 pool between them."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(Conv(3, 3, padding="VALID", use_bias=False, name="conv1")(x))
        x = max_pool(x, (2, 2), (2, 2))
        return Conv(2, 2, padding="VALID", use_bias=False, name="conv2")(x)


@pytest.fixture(scope="module")
def network():
    rng = np.random.RandomState(0)
    kernels = {"conv1": rng.randn(3, 3, 1, 3), "conv2": rng.randn(2, 2, 3, 2)}
    params = {k: {"kernel": jnp.asarray(v, jnp.float32)} for k, v in kernels.items()}
    return {"params": params}, rng.randn(12, 10, 10, 1).astype(np.float32)


def deconvnet(kernels, image, unit):
    """Zeiler and Fergus, section 2.1, in loops: the strongest place of a unit and what it makes."""
    first, second = (np.asarray(kernels[name]["kernel"]) for name in ("conv1", "conv2"))
    maps = np.maximum(correlate(image, first), 0)
    pooled, switches = np.zeros((4, 4, 3)), {}
    for i, j, c in np.ndindex(4, 4, 3):
        window = maps[2 * i : 2 * i + 2, 2 * j : 2 * j + 2, c]
        pooled[i, j, c] = window.max()
        a, b = np.unravel_index(window.argmax(), (2, 2))
        switches[i, j, c] = (2 * i + a, 2 * j + b)
    top = correlate(pooled, second)[..., unit]
    place = np.unravel_index(top.argmax(), top.shape)
    back = np.zeros((4, 4, 3))  # of the pool's output
    back[place[0] : place[0] + 2, place[1] : place[1] + 2] = top[place] * second[..., unit]
    unpooled = np.zeros_like(maps)
    for (i, j, c), (row, column) in switches.items():
        unpooled[row, column, c] = back[i, j, c]
    unpooled, pixels = np.maximum(unpooled, 0), np.zeros_like(image)
    for i, j, c in np.ndindex(maps.shape):
        pixels[i : i + 3, j : j + 3] += unpooled[i, j, c] * first[..., c]
    return pixels, top.max(), place


def correlate(x, kernel):
    size = kernel.shape[0]
    out = np.zeros((x.shape[0] - size + 1, x.shape[1] - size + 1, kernel.shape[-1]))
    for i, j in np.ndindex(out.shape[:2]):
        out[i, j] = np.tensordot(x[i : i + size, j : j + size], kernel, 3)
    return out


def test_reconstruction_is_that_of_the_paper(network):
    variables, images = network
    got = reconstruct(Net(), variables, images[:2], "conv2", 1)
    for image, one in zip(images, got, strict=False):
        np.testing.assert_allclose(one, deconvnet(variables["params"], image, 1)[0], atol=1e-4)


def test_patches_are_the_strongest(network):
    variables, images = network
    found = find_patches(Net(), variables, images, "conv2", 0, count=3, batch_size=8)
    each = [deconvnet(variables["params"], image, 0) for image in images]
    best = np.argsort([-value for _, value, _ in each])[:3]
    np.testing.assert_array_equal(found.images, best)
    np.testing.assert_allclose(found.values, [each[i][1] for i in best], rtol=1e-5)
    size = found.patches.shape[1:3]
    assert max(size) <= 6  # a unit of conv2 sees 3 + 1 + 2 pixels
    for index, corner, patch in zip(best, found.corners, found.patches, strict=True):
        row, column = corner
        expected = images[index][row : row + size[0], column : column + size[1]]
        np.testing.assert_array_equal(patch, expected)
    kept = np.abs(found.reconstructions).sum((1, 2, 3))
    np.testing.assert_allclose(kept, [np.abs(each[i][0]).sum() for i in best], rtol=1e-4)
    with pytest.raises(UserError, match="conv2 has units 0 to 1, and 2 is wanted"):
        find_patches(Net(), variables, images, "conv2", 2)


def test_maximization_finds_what_excites_most():
    class Sees(nn.Module):
        """Unit 0 likes the first channel bright and the second dark."""

        @nn.compact
        def __call__(self, x, train):
            return nn.Dense(1, name="unit")(x.mean((1, 2)))

    kernel = jnp.array([[1.0], [-1.0]])
    variables = {"params": {"unit": {"kernel": kernel, "bias": jnp.zeros(1)}}}
    image, values = maximize_activation(
        Sees(),
        variables,
        "unit",
        0,
        (6, 4, 2),
        low=(-1.0, 0.0),
        high=(2.0, 3.0),
        steps=60,
        learning_rate=0.3,
    )
    assert image.shape == (6, 4, 2) and values.shape == (60,)
    assert values[0] < -0.5 and values[-1] > 1.6  # of -4 to 2
    assert image[..., 0].mean() > 1.7 and image[..., 1].mean() < 0.3
    assert image.min() >= -1 and image.max() <= 3
    with pytest.raises(UserError, match="units 0 to 0, not 1"):
        maximize_activation(Sees(), variables, "unit", 1, (6, 4, 2))
