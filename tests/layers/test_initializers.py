import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxcnn
from flaxcnn.errors import UserError
from flaxcnn.layers import INITIALIZERS, get_initializer
from flaxcnn.models import create_model

CONV, DENSE = (3, 3, 16, 64), (400, 100)  # HWIO; inputs, outputs
FANS = {CONV: (9 * 16, 9 * 64), DENSE: (400, 100)}
# Keras's documentation of each: the variance, and the largest absolute value. A normal
# distribution cut at two deviations has the deviation 0.87962566 of the one before
# (`stats.truncnorm(-2, 2).std()` in SciPy), by which Keras divides.
CUT = 2 / 0.87962566
RULES = {
    "glorot_normal": lambda i, o: (2 / (i + o), CUT * (2 / (i + o)) ** 0.5),
    "glorot_uniform": lambda i, o: (2 / (i + o), (6 / (i + o)) ** 0.5),
    "he_normal": lambda i, o: (2 / i, CUT * (2 / i) ** 0.5),
    "he_uniform": lambda i, o: (2 / i, (6 / i) ** 0.5),
    "lecun_normal": lambda i, o: (1 / i, CUT * (1 / i) ** 0.5),
    "lecun_uniform": lambda i, o: (1 / i, (3 / i) ** 0.5),
    "random_uniform": lambda i, o: (0.1**2 / 12, 0.05),
    "zeros": lambda i, o: (0, 0),
}


def test_every_name_is_listed_here():
    assert {*RULES, "orthogonal"} == set(INITIALIZERS)


@pytest.mark.parametrize("name", RULES)
def test_variance_and_range(name):
    for shape in (CONV, DENSE):
        variance, largest = RULES[name](*FANS[shape])
        kernel = np.asarray(get_initializer(name)(jax.random.key(0), shape, jnp.float32))
        count = kernel.size
        assert abs(kernel.mean()) <= 4 * (variance / count) ** 0.5
        np.testing.assert_allclose(kernel.var(), variance, rtol=0.03)
        assert 0.99 * largest <= np.abs(kernel).max() <= largest * (1 + 1e-6)
        if name.endswith("normal"):  # of the uniform ones half would be within half of the largest
            assert (np.abs(kernel) < largest / 2).mean() > 0.65
        elif name != "zeros":
            assert abs((np.abs(kernel) < largest / 2).mean() - 0.5) < 0.02


def test_orthogonal_columns():
    shape = (3, 3, 4, 8)
    kernel = np.asarray(get_initializer("orthogonal")(jax.random.key(0), shape, jnp.float32))
    matrix = kernel.reshape(-1, shape[-1])
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(shape[-1]), atol=2e-6)


def test_networks_take_names():
    sizes = {"mnist_mlp_512": {"hidden": (32, 24)}, "digits_cnn": {"maps": ((4, 3), "pool")}}
    for name, size in sizes.items():
        kernels = {}
        for rule in ("default", "glorot_uniform", "he_uniform", "zeros"):
            kwargs = size if rule == "default" else {**size, "kernel_init": rule}
            model = create_model(name, **kwargs)
            params = flaxcnn.init(model, jax.random.key(0), (8, 8, 1))["params"]
            kernels[rule] = {
                layer: np.asarray(leaves["kernel"])
                for layer, leaves in params.items()
                if "kernel" in leaves
            }
        assert len(kernels["default"]) == 3
        for layer, kernel in kernels["default"].items():
            np.testing.assert_array_equal(kernel, kernels["glorot_uniform"][layer])
            assert not kernels["zeros"][layer].any()
            # both draw the same numbers, of a variance 2 / (i + o) and 2 / i
            i, o = (np.prod(kernel.shape[:-2]) * n for n in kernel.shape[-2:])
            widened = kernel * ((i + o) / i) ** 0.5
            np.testing.assert_allclose(kernels["he_uniform"][layer], widened, rtol=1e-5)


def test_an_unknown_name():
    model = create_model("digits_cnn", kernel_init="kaiming")
    images = jnp.zeros((1, 8, 8, 1))
    with pytest.raises(UserError, match=r"^unknown initializer 'kaiming': .*he_normal, .*zeros"):
        jax.eval_shape(lambda key: model.init(key, images, train=False), jax.random.key(0))
