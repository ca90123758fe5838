import math

import jax
import jax.numpy as jnp
import numpy as np
import numpy_layers as layers
import pytest
from draw import draw_images
from drawn import draw_network, evaluate, init, init_shapes, relative_error
from flax import linen as nn

from flaxcnn.errors import UserError
from flaxcnn.models import airbench, create_model
from flaxcnn.models.airbench import init_identity

WIDTHS = (6, 8, 8)


def gelu(x):
    """By its definition: x times the normal distribution function (Hendrycks 2016)."""
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def forward(variables, images, residual=False):
    params, statistics = variables["params"], variables["batch_stats"]

    def conv(x, group, i):
        return layers.conv2d(x, params[group][f"conv{i}"]["kernel"], padding=1)

    def norm(x, group, i):
        bias, moments = params[group][f"bn{i}"]["bias"], statistics[group][f"bn{i}"]
        return layers.batch_norm(x, 1.0, bias, moments["mean"], moments["var"], 1e-12)

    x = layers.conv2d(images, statistics["whiten"]["kernel"], params["whiten"]["bias"])
    x = gelu(x)
    for group in ("group1", "group2", "group3"):
        x = layers.max_pool(conv(x, group, 1), 2, 2)
        x = shortcut = gelu(norm(x, group, 1))
        x = norm(conv(x, group, 2), group, 2)
        if residual:
            x = norm(conv(gelu(x), group, 3), group, 3) + shortcut
        x = gelu(x)
    x = layers.flatten(layers.max_pool(x, 3, 3))
    return layers.dense(x, params["classifier"]["kernel"]) / 9


@pytest.mark.parametrize("name", ["airbench94", "airbench95", "airbench96"])
def test_equals_numpy(name):
    images = draw_images(2, 32, 32, 3)
    model, variables = draw_network(name, images, widths=WIDTHS)
    expected = forward(variables, images, residual=name == "airbench96")
    assert relative_error(evaluate(model, variables, images), expected) < 1e-4


def test_what_is_trained_and_what_is_kept():
    model, variables = draw_network("airbench94", draw_images(8, 32, 32, 3), widths=WIDTHS)
    params = variables["params"]
    assert set(params["whiten"]) == {"bias"}
    assert {name: set(leaves) for name, leaves in params["group1"].items()} == {
        "conv1": {"kernel"},
        "conv2": {"kernel"},
        "bn1": {"bias"},
        "bn2": {"bias"},
    }

    @jax.jit
    def train(variables, images):
        return model.apply(variables, images, train=True, mutable=["batch_stats"])[1]

    images = draw_images(8, 32, 32, 3)
    old, new = variables["batch_stats"], train(variables, images)["batch_stats"]
    assert jax.tree.structure(old) == jax.tree.structure(new)
    np.testing.assert_array_equal(new["whiten"]["kernel"], old["whiten"]["kernel"])
    x = layers.conv2d(images, old["whiten"]["kernel"], params["whiten"]["bias"])
    x = layers.conv2d(gelu(x), params["group1"]["conv1"]["kernel"], padding=1)
    mean = layers.max_pool(x, 2, 2).mean((0, 1, 2))
    expected = 0.6 * old["group1"]["bn1"]["mean"] + 0.4 * mean
    np.testing.assert_allclose(new["group1"]["bn1"]["mean"], expected, rtol=1e-4, atol=1e-5)


def test_bfloat16_agrees_roughly_and_has_statistics_in_float32():
    images = draw_images(4, 32, 32, 3)
    model, variables = draw_network("airbench94", images, widths=WIDTHS)
    half = create_model("airbench94", widths=WIDTHS, dtype=jnp.bfloat16)
    apply = jax.jit(lambda v, x: half.apply(v, x, train=True, mutable=["batch_stats"]))
    logits, updates = apply(variables, images)
    wide, _ = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]))(
        variables, images
    )
    assert logits.dtype == jnp.float32 and relative_error(np.asarray(logits), wide) < 0.1
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(("inputs", "features"), [(5, 9), (5, 5), (5, 3)])
def test_kernels_start_as_identities(inputs, features):
    """The first outputs are the inputs; the others have PyTorch's default distribution."""
    kernel = jax.jit(init_identity, static_argnums=1)(jax.random.key(0), (3, 3, inputs, features))
    images = draw_images(2, 6, 7, inputs)
    kept = min(inputs, features)
    outputs = layers.conv2d(images, kernel, padding=1)[..., :kept]
    np.testing.assert_allclose(outputs, images[..., :kept], rtol=1e-6)
    if features > inputs:
        rest, bound = np.asarray(kernel)[..., kept:], 1 / np.sqrt(9 * inputs)
        assert np.abs(rest).max() <= bound
        np.testing.assert_allclose(rest.std(), bound / np.sqrt(3), rtol=0.15)
        assert abs(rest.mean()) < 0.1 * bound


def test_every_kernel_of_a_network_starts_as_an_identity(monkeypatch):
    # The rest of a kernel as zeros: random numbers for all of them take long to compile.
    monkeypatch.setattr(airbench, "dense_uniform", nn.initializers.zeros)
    model = create_model("airbench96", widths=WIDTHS)
    params = init(model, draw_images(1, 9, 9, 3))["params"]
    for group in ("group1", "group2", "group3"):
        for i in (1, 2, 3):
            kernel = np.asarray(params[group][f"conv{i}"]["kernel"])
            np.testing.assert_array_equal(kernel[1, 1], np.eye(*kernel.shape[2:]))
            assert kernel.sum() == min(kernel.shape[2:])


def draw_photographs(count):
    """Images whose neighbouring pixels and channels depend on each other, not centred."""
    rng = np.random.default_rng(1)
    images = rng.normal(size=(count, 17, 14, 3)).cumsum(1).cumsum(2)
    mixed = images @ np.array([[0.2, 0.1, 0.1], [0.1, 0.3, 0.2], [0.0, 0.1, 0.2]])
    return (mixed + np.array([1.0, -2.0, 0.5])).astype(np.float32)


def list_patches(images):
    """All 2x2 patches, float64 [patches, 12], in the order of a kernel [2, 2, 3, F]."""
    windows = np.lib.stride_tricks.sliding_window_view(np.float64(images), (2, 2), axis=(1, 2))
    return windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, 12)


def initialized(images):
    model, variables = draw_network("airbench94", images, widths=WIDTHS)
    return variables, model.initialize_from(variables, images)


def test_whitened_patches_have_the_identity_for_their_covariance():
    images = draw_photographs(1100)  # more than one chunk of 500, and a last one that is shorter
    _, variables = initialized(images)
    kernel = variables["batch_stats"]["whiten"]["kernel"]
    assert (kernel.shape, kernel.dtype) == ((2, 2, 3, 24), jnp.float32)
    filters = np.float64(kernel).reshape(12, 24)
    np.testing.assert_array_equal(filters[:, 12:], -filters[:, :12])
    patches = list_patches(images)
    variances = np.linalg.eigvalsh(np.cov(patches.T))[::-1]
    assert variances[-1] < 0.01  # so that the 5e-4 that is added shows
    whitened = np.cov(layers.conv2d(images, kernel)[..., :12].reshape(-1, 12).T)
    np.testing.assert_allclose(whitened, np.diag(variances / (variances + 5e-4)), atol=1e-3)
    np.testing.assert_allclose(
        filters[:, :12] @ filters[:, :12].T,
        np.linalg.inv(np.cov(patches.T) + 5e-4 * np.eye(12)),
        rtol=1e-3,
        atol=1e-2,
    )


def test_only_the_first_kernel_is_changed_and_always_in_the_same_way():
    images = draw_photographs(20)
    before, after = initialized(images)
    _, again = initialized(jnp.asarray(images))
    old, new = before["batch_stats"]["whiten"], after["batch_stats"]["whiten"]
    np.testing.assert_array_equal(new["kernel"], again["batch_stats"]["whiten"]["kernel"])
    assert not np.allclose(new["kernel"], old["kernel"])
    after["batch_stats"]["whiten"]["kernel"] = old["kernel"]
    assert jax.tree.structure(after) == jax.tree.structure(before)
    assert jax.tree.all(jax.tree.map(np.array_equal, after, before))


def test_patches_in_which_nothing_varies_are_no_division_by_zero():
    images = np.repeat(draw_photographs(20)[..., :1], 3, axis=-1)  # grey: 4 dimensions of 12
    _, variables = initialized(images)
    kernel = np.float64(variables["batch_stats"]["whiten"]["kernel"]).reshape(12, 24)
    assert np.isfinite(kernel).all()
    np.testing.assert_allclose(np.linalg.norm(kernel[:, 4:12], axis=0), 5e-4**-0.5, rtol=1e-3)


def test_images_of_other_sizes():
    images = draw_images(2, 47, 35, 3)
    model, variables = draw_network("airbench94", images, widths=WIDTHS)
    assert evaluate(model, variables, images).shape == (2, 10)
    with pytest.raises(UserError, match="Airbench needs images of at least 9x9"):
        init_shapes(model, jnp.zeros((1, 8, 12, 3)))
    with pytest.raises(UserError, match=r"Airbench needs images \[N, H, W, C\]"):
        model.initialize_from({}, np.zeros((32, 32, 3), np.float32))
