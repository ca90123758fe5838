import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import init
from scipy import signal

from flaxcnn.errors import UserError
from flaxcnn.models import create_model
from flaxcnn.models.lenet import digit_bitmaps, extend_edge

# Table I of the paper: the maps of S2 that each map of C3 sees.
TABLE_1 = [
    (0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (4, 5, 0), (5, 0, 1),
    (0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (3, 4, 5, 0), (4, 5, 0, 1), (5, 0, 1, 2),
    (0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5),
    (0, 1, 2, 3, 4, 5),
]  # fmt: skip


def randomize(variables, seed=0):
    draw = np.random.default_rng(seed).normal
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * draw(size=leaf.shape), jnp.float32), variables
    )


def make(name, images, **kwargs):
    model = create_model(name, **kwargs)
    shapes = jax.eval_shape(lambda key: model.init(key, images, train=False), jax.random.key(0))
    return model, randomize(shapes)


def reference(params, image):
    """LeNet-5 for one image [32, 32], by the paper's equations."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def squash(a):
        return 1.7159 * np.tanh(2 * a / 3)

    def subsample(maps, layer):
        return [
            squash(c * (m[::2, ::2] + m[1::2, ::2] + m[::2, 1::2] + m[1::2, 1::2]) + b)
            for m, c, b in zip(maps, layer["coefficient"], layer["bias"], strict=True)
        ]

    def correlate(m, kernel):
        return signal.correlate2d(m, kernel, "valid")

    c1 = [
        squash(correlate(image, p["c1"]["kernel"][:, :, 0, i]) + p["c1"]["bias"][i])
        for i in range(6)
    ]
    s2 = subsample(c1, p["s2"])
    c3, next_filter = [], 0
    for i, seen in enumerate(TABLE_1):
        total = p["c3"]["bias"][i]
        for j in sorted(seen):
            total = total + correlate(s2[j], p["c3"]["kernel"][:, :, next_filter])
            next_filter += 1
        c3.append(squash(total))
    assert next_filter == 60
    s4 = subsample(c3, p["s4"])
    c5 = [
        squash(
            sum(correlate(s4[j], p["c5"]["kernel"][:, :, j, i])[0, 0] for j in range(16))
            + p["c5"]["bias"][i]
        )
        for i in range(120)
    ]
    f6 = squash(np.array(c5) @ p["f6"]["kernel"] + p["f6"]["bias"])
    return [-sum((f6 - bitmap) ** 2) for bitmap in digit_bitmaps()]


def test_lenet5_is_the_paper_s():
    images = np.random.default_rng(1).normal(size=(2, 32, 32, 1)).astype(np.float32)
    model, variables = make("lenet5_1998", images)
    logits = model.apply(variables, jnp.asarray(images), train=False)
    expected = [reference(variables["params"], image[..., 0]) for image in images]
    np.testing.assert_allclose(logits, expected, rtol=2e-5)


def test_lenet5_parameters_per_layer():
    _, variables = make("lenet5_1998", jnp.zeros((1, 28, 28, 1)))
    counts = {
        name: sum(leaf.size for leaf in jax.tree.leaves(layer))
        for name, layer in variables["params"].items()
    }
    assert counts == {"c1": 156, "s2": 12, "c3": 1516, "s4": 32, "c5": 48120, "f6": 10164}


def test_initial_weights_are_uniform_by_fan_in():
    params = init(create_model("lenet5_1998"), jnp.zeros((1, 32, 32, 1)))["params"]
    inputs = np.repeat([len(seen) for seen in TABLE_1], [len(seen) for seen in TABLE_1])
    bounds = {"c1": 25, "c3": 25 * inputs, "c5": 400, "f6": 120}
    for name, fan_in in bounds.items():
        scaled = np.asarray(params[name]["kernel"]) * np.asarray(fan_in) / 2.4
        assert 0.97 < abs(scaled).max() <= 1 + 1e-6, name
        assert abs(scaled.std() - 3**-0.5) < 0.06, name
        assert not params[name]["bias"].any()
    assert 0 < abs(np.asarray(params["s4"]["coefficient"])).max() <= 0.6


def test_bitmaps_are_ten_different_pictures_of_7_by_12():
    bitmaps = digit_bitmaps()
    assert bitmaps.shape == (10, 84) and bitmaps.dtype == np.float32
    assert set(np.unique(bitmaps)) == {-1, 1}
    differing = (bitmaps[:, None] != bitmaps[None]).sum(-1) + 84 * np.eye(10)
    assert differing.min() >= 7
    one = bitmaps[1].reshape(12, 7) > 0
    assert one[-1].sum() == 6 and one[3:10, 3:5].all()  # a foot and a stem: rows are rows


def test_an_f6_that_is_a_bitmap_wins():
    images = jnp.zeros((1, 32, 32, 1))
    model, variables = make("lenet5_1998", images)
    f6 = variables["params"]["f6"]
    f6["kernel"] = jnp.zeros_like(f6["kernel"])
    for digit, bitmap in enumerate(digit_bitmaps()):
        f6["bias"] = jnp.asarray(1.5 * np.arctanh(bitmap / 1.7159))
        logits = model.apply(variables, images, train=False)[0]
        assert logits.argmax() == digit
        np.testing.assert_allclose(logits[digit], 0, atol=1e-5)


def test_small_images_are_extended_by_their_edge():
    image = jnp.arange(6.0).reshape(1, 2, 3, 1)
    np.testing.assert_array_equal(
        extend_edge(image, 5)[0, :, :, 0],
        [[0, 0, 1, 2, 2], [0, 0, 1, 2, 2], [3, 3, 4, 5, 5], [3, 3, 4, 5, 5], [3, 3, 4, 5, 5]],
    )
    for name in ("lenet5_1998", "lenet5_dense"):
        images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 28, 28, 1)), jnp.float32)
        model, variables = make(name, images)
        border = ((0, 0), (2, 2), (2, 2), (0, 0))
        np.testing.assert_array_equal(
            model.apply(variables, images, train=False),
            model.apply(variables, jnp.pad(images, border, mode="edge"), train=False),
        )


def test_lenet5_refuses_what_its_output_cannot_be():
    with pytest.raises(UserError, match=r"(?m)^LeNet5 needs images of at most 32x32, got 40x32x1$"):
        make("lenet5_1998", jnp.zeros((1, 40, 32, 1)))
    with pytest.raises(UserError, match="num_classes is 3: .* must be 10, or 0"):
        make("lenet5_1998", jnp.zeros((1, 32, 32, 1)), num_classes=3)


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("lenet5_dense", {"conv1": (5, 5, 1, 6), "conv2": (5, 5, 6, 16), "fc1": (400, 120),
                          "fc2": (120, 84), "classifier": (84, 10)}),
        ("lenet_caffe", {"conv1": (5, 5, 1, 20), "conv2": (5, 5, 20, 50), "fc1": (800, 500),
                         "classifier": (500, 10)}),
    ],
)  # fmt: skip
def test_dense_forms_have_their_layers(name, shapes):
    _, variables = make(name, jnp.zeros((1, 28, 28, 1)))
    assert {k: v["kernel"].shape for k, v in variables["params"].items()} == shapes


def test_dense_form_pools_by_the_mean_and_caffe_s_by_the_maximum():
    images = np.random.default_rng(2).normal(size=(1, 32, 32, 1)).astype(np.float32)
    for name, activation, pool in (
        ("lenet5_dense", np.tanh, np.mean),
        ("lenet_caffe", lambda x: x, np.max),
    ):
        model, variables = make(name, images)
        p = jax.tree.map(np.asarray, variables["params"])
        maps = images[0]
        for layer in ("conv1", "conv2"):
            kernel, bias = p[layer]["kernel"], p[layer]["bias"]
            maps = np.stack(
                [
                    activation(
                        sum(
                            signal.correlate2d(maps[..., c], kernel[..., c, f], "valid")
                            for c in range(maps.shape[-1])
                        )
                        + bias[f]
                    )
                    for f in range(len(bias))
                ],
                -1,
            )
            height, width, features = maps.shape
            maps = pool(maps.reshape(height // 2, 2, width // 2, 2, features), axis=(1, 3))
        x = maps.reshape(-1)
        hidden = np.tanh if name == "lenet5_dense" else lambda x: np.maximum(x, 0)
        for layer in [layer for layer in ("fc1", "fc2") if layer in p]:
            x = hidden(x @ p[layer]["kernel"] + p[layer]["bias"])
        x = x @ p["classifier"]["kernel"] + p["classifier"]["bias"]
        logits = model.apply(variables, jnp.asarray(images), train=False)[0]
        np.testing.assert_allclose(logits, x, rtol=1e-3, atol=1e-3)


def test_activation_is_a_choice():
    images = jnp.asarray(np.random.default_rng(0).normal(size=(1, 28, 28, 1)), jnp.float32)
    logits = []
    for activation in ("tanh", "relu", jnp.tanh):
        model, variables = make("lenet5_dense", images, activation=activation)
        logits.append(np.asarray(model.apply(variables, images, train=False)))
    assert not np.allclose(logits[0], logits[1])
    np.testing.assert_array_equal(logits[0], logits[2])
