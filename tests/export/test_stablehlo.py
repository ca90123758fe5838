"""The file computes in jax alone what the network computes here."""

import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import flaxcnn
from flaxcnn.errors import UserError
from flaxcnn.export import export_stablehlo
from flaxcnn.layers import conv, max_pool
from flaxcnn.tasks.classification import Classification
from flaxcnn.training.predictor import Predictor
from flaxcnn.weights import Preprocessing

# What docs/export.md says, in a process that cannot import flaxcnn.
RELOAD = """
import os, sys
sys.modules["flaxcnn"] = None
os.chdir(sys.argv[1])

import jax
import jax.export
import numpy as np

with open("network.stablehlo", "rb") as file:
    network = jax.export.deserialize(bytearray(file.read()))
images = np.load("images.npy")
answers = [jax.jit(network.call)(part) for part in (images[:1], images)]
np.savez("answers.npz", *answers)
assert "flax" not in sys.modules
"""


@pytest.mark.slow
def test_probabilities_in_a_process_without_flaxcnn(run_command, tmp_path):
    model, names = flaxcnn.create_model("mnist_tiny"), tuple(map(str, range(10)))
    variables = flaxcnn.init(model, jax.random.key(0), (28, 28, 1))
    reading = Preprocessing((28, 28), (0.3,), (0.2,))
    predictor = Predictor(model, variables, reading, Classification(names))
    export_stablehlo(tmp_path / "network.stablehlo", predictor.function, (28, 28, 1))
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1)).astype(np.uint8)
    np.save(tmp_path / "images.npy", images)
    finished = run_command("-c", RELOAD, tmp_path)
    assert finished.returncode == 0, finished.stderr
    one, three = np.load(tmp_path / "answers.npz").values()
    assert one.shape == (1, 10) and three.dtype == np.float32
    logits = model.apply(variables, (images / np.float32(255) - 0.3) / 0.2, train=False)
    np.testing.assert_allclose(three, jax.nn.softmax(logits), atol=1e-6)
    np.testing.assert_allclose(one, three[:1], atol=1e-6)


def test_every_platform_and_any_number_of_images_are_in_the_file(tmp_path):
    kernel = np.random.default_rng(0).normal(size=(3, 3, 1, 2)).astype(np.float32)

    def function(images):
        x = conv(images.astype(jnp.float32), jnp.asarray(kernel), padding="VALID")
        return {"logits": max_pool(x, (2, 2)).mean((1, 2))}

    export_stablehlo(tmp_path / "x", function, (5, 5, 1))
    exported = jax.export.deserialize(bytearray((tmp_path / "x").read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    images = np.random.default_rng(1).integers(0, 256, (2, 5, 5, 1)).astype(np.uint8)
    windows = np.lib.stride_tricks.sliding_window_view(images[..., 0], (3, 3), (1, 2))
    maps = np.einsum("nxyhw,hwf->nxyf", windows.astype(np.float64), kernel[:, :, 0])
    maxima = np.lib.stride_tricks.sliding_window_view(maps, (2, 2), (1, 2)).max((-1, -2))
    for count in (1, 2):
        actual = exported.call(images[:count])["logits"]
        np.testing.assert_allclose(actual, maxima.mean((1, 2))[:count], rtol=1e-5)


def test_what_cannot_be_exported_is_one_line(tmp_path, monkeypatch):
    def in_pairs(images):
        return images.reshape(len(images) // 2, -1)  # an odd number has no pairs

    with pytest.raises(UserError, match="x: the network cannot be exported: .*") as raised:
        export_stablehlo(tmp_path / "x", in_pairs, (2, 2, 1))
    assert "\n" not in str(raised.value)
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(UserError, match=r"needs flatbuffers: pip install 'flaxcnn\[stablehlo\]'$"):
        export_stablehlo(tmp_path / "x", jnp.mean, (2, 2, 1))
    assert not list(tmp_path.iterdir())
