from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from PIL import Image

import flaxcnn
from flaxcnn.analysis import draw_signals, signals
from flaxcnn.commands.main import main
from flaxcnn.errors import UserError
from flaxcnn.models import create_model, init
from flaxcnn.training import Config, DataConfig, ModelConfig

SHAPE = (4, 4, 1)
IMAGES = np.random.default_rng(0).standard_normal((16, *SHAPE), np.float32)
LABELS = np.random.default_rng(1).integers(0, 10, 16)


def draw_params(*widths):
    """Kernels as He et al. (2015) draw them, biases of zero."""
    names = [f"fc{i}" for i in range(1, len(widths) + 1)] + ["classifier"]
    draw = np.random.default_rng(2).standard_normal
    return {
        name: {"kernel": np.float32(draw((n, m)) * (2 / n) ** 0.5), "bias": np.zeros(m, np.float32)}
        for name, n, m in zip(names, (16, *widths), (*widths, 10), strict=True)
    }


def test_back_propagation_by_hand():
    """Of tanh layers: Rumelhart et al. (1986), in NumPy and float64."""
    params = draw_params(12, 8)
    model = create_model("mnist_mlp_512", hidden=(12, 8), activation="tanh")
    found = signals(model, {"params": params}, IMAGES, LABELS, train=False)
    assert found.layers == ["fc1", "fc2", "classifier"]
    inputs, outputs = [IMAGES.reshape(16, -1).astype(float)], []
    for name in found.layers:
        kernel, bias = (np.asarray(params[name][key], float) for key in ("kernel", "bias"))
        outputs.append(inputs[-1] @ kernel + bias)
        inputs.append(np.tanh(outputs[-1]))
    exponentials = np.exp(outputs[-1])
    delta = exponentials / exponentials.sum(1, keepdims=True) - np.eye(10)[LABELS]
    for i in (2, 1, 0):
        if i < 2:
            kernel = np.asarray(params[found.layers[i + 1]]["kernel"], float)
            delta = (delta @ kernel.T) * (1 - inputs[i + 1] ** 2)
        expected = (
            outputs[i].mean(),
            outputs[i].std(),
            np.sqrt((delta**2).sum(1).mean()),
            np.linalg.norm(inputs[i].T @ delta / 16),
        )
        np.testing.assert_allclose([values[i] for values in found[1:]], expected, rtol=1e-4)


def test_in_training_batch_norm_goes_by_the_batch():
    model = create_model("digits_cnn", maps=((3, 3), "pool"), hidden=(), dropout=0.0)
    variables = init(model, jax.random.key(0), SHAPE)

    def find_loss(params):
        held = {**variables, "params": params}
        logits = model.apply(held, jnp.asarray(IMAGES), train=True, mutable=["batch_stats"])[0]
        return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()

    of_params = jax.jit(jax.grad(find_loss))(variables["params"])
    expected = [jnp.linalg.norm(of_params[name]["kernel"]) for name in ("conv1", "classifier")]
    found = signals(model, variables, IMAGES, LABELS)
    assert found.layers == ["conv1", "classifier"]
    np.testing.assert_allclose(found.gradient, expected, rtol=1e-4)


def test_gradients_vanish_behind_sigmoids():
    params = draw_params(*(32,) * 4)
    starts = {
        "sigmoid": ("sigmoid", params),
        "relu": ("relu", params),
        "zeros": ("relu", jax.tree.map(np.zeros_like, params)),
    }
    found = {}
    for name, (activation, start) in starts.items():
        model = create_model("mnist_mlp_512", hidden=(32,) * 4, activation=activation)
        found[name] = signals(model, {"params": start}, IMAGES, LABELS)
    lost = {name: each.backward[0] / each.backward[-1] for name, each in found.items()}
    assert lost["sigmoid"] < 0.01  # the slope of a sigmoid is at most 1/4
    assert 0.1 < lost["relu"] < 10
    assert not found["zeros"].deviation.any() and lost["zeros"] == 0
    figure = draw_signals(found, "three starts")
    legend: Any = figure.axes[3].get_legend()
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["sigmoid", "relu", "zeros (zero)"]
    drawn = figure.axes[2].lines[0].get_ydata()
    np.testing.assert_array_equal(drawn, found["sigmoid"].backward)
    with pytest.raises(UserError, match=r"^labels must be \[16\]"):
        signals(create_model("mnist_mlp_512"), {}, IMAGES, LABELS[:3])


@pytest.mark.slow
def test_of_a_network_and_of_a_run(tmp_path, capsys):
    kwargs = ConfigDict({"kernel_init": "he_normal"})
    config = Config(
        model=ModelConfig(name="digits_cnn", kwargs=kwargs),
        data=DataConfig(source="digits", validation=0.1),
        epochs=2,
    )
    flaxcnn.train(config, tmp_path / "run")
    out = str(tmp_path / "a.png")
    words = ["visualize", "signals", "digits_cnn", str(tmp_path / "run"), "--out", out]
    assert main(words) == 0
    with Image.open(out) as picture:
        assert picture.size[0] > 1000
    assert main([*words, "--images", "1"]) == 2
    assert "--images 1" in capsys.readouterr().err
