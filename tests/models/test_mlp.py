import jax
import jax.numpy as jnp
import numpy as np

from flaxcnn.models import create_model


def test_layers_and_values():
    model = create_model("cifar_mlp")
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    shapes = jax.eval_shape(
        lambda key: model.init(key, jnp.asarray(images), train=False), jax.random.key(0)
    )
    draw = np.random.default_rng(1).normal
    params = jax.tree.map(lambda s: (0.02 * draw(size=s.shape)).astype("f4"), shapes)["params"]
    kernels = {name: layer["kernel"].shape for name, layer in params.items()}
    assert kernels == {"fc1": (3072, 1024), "fc2": (1024, 256), "classifier": (256, 10)}
    x = images.reshape(2, -1)
    for name in ("fc1", "fc2"):
        x = np.maximum(x @ params[name]["kernel"] + params[name]["bias"], 0)
    x = x @ params["classifier"]["kernel"] + params["classifier"]["bias"]
    logits = model.apply({"params": params}, jnp.asarray(images), train=False)
    np.testing.assert_allclose(logits, x, rtol=1e-4, atol=1e-4)


def test_each_noise_is_a_choice_of_its_own():
    images = jnp.ones((2, 4, 4, 1))
    logits = []
    for kwargs in ({}, {"noise": 0.5}, {"gaussian_dropout": 0.5}, {"dropout": 0.5}):
        model = create_model("cifar_mlp", hidden=(16, 8), **kwargs)
        variables = model.init(jax.random.key(0), images, train=False)
        rngs = {"dropout": jax.random.key(1)}
        logits.append(np.asarray(model.apply(variables, images, train=True, rngs=rngs)))
        np.testing.assert_array_equal(model.apply(variables, images, train=False), logits[0])
    assert len({each.tobytes() for each in logits}) == 4
