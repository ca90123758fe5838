"""What is wrong with a Darknet file is one line; what it is, its .cfg says."""

import numpy as np
import pytest

from flaxcnn.errors import UserError
from flaxcnn.weights import read_tensors
from flaxcnn.weights.formats import darknet

CFG = """[net]
channels=2
# a comment
[convolutional]
filters=4
size=1
[maxpool]
size=2
stride=2
[convolutional]
batch_normalize=1
filters=3
groups=2
size=3
[route]
layers=-1, 0
[reorg]
stride=2
[convolutional]
filters=1
size=1
"""
SHAPES = {
    "0.biases": (4,),
    "0.weights": (4, 2, 1, 1),
    "1.biases": (3,),
    "1.scales": (3,),
    "1.rolling_mean": (3,),
    "1.rolling_variance": (3,),
    "1.weights": (3, 2, 3, 3),
    "2.biases": (1,),
    "2.weights": (1, 28, 1, 1),
}
NUMBERS = sum(int(np.prod(shape)) for shape in SHAPES.values())
VERSIONS = {"0.1": ([0, 1, 0], 4), "0.2": ([0, 2, 0], 8), "1.0": ([1, 0, 5], 8)}


def save(folder, values, version="0.2", cfg=CFG):
    numbers, seen = VERSIONS[version]
    header = np.array(numbers, "<i4").tobytes() + bytes(seen)
    (folder / "a.weights").write_bytes(header + np.asarray(values, "<f4").tobytes())
    if cfg is not None:
        (folder / "a.cfg").write_text(cfg)
    return folder / "a.weights"


@pytest.mark.parametrize("version", VERSIONS)
def test_numbers_go_to_tensors_in_the_order_of_the_file(tmp_path, version):
    tensors = read_tensors(save(tmp_path, np.arange(NUMBERS), version))
    assert {n: x.shape for n, x in tensors.items()} == SHAPES
    together = np.concatenate([x.ravel() for x in tensors.values()])
    np.testing.assert_array_equal(together, np.arange(NUMBERS))


def test_a_file_may_end_after_a_convolution(tmp_path):
    tensors = read_tensors(save(tmp_path, np.arange(12)))
    assert list(tensors) == ["0.biases", "0.weights"]


def test_mistakes_are_one_line(tmp_path):
    cut = CFG.replace("[reorg]", "[crnn]")
    for values, version, cfg, message in (
        (np.zeros(NUMBERS), "0.2", None, "no names or shapes: a.cfg is not beside it"),
        (np.zeros(NUMBERS + 1), "0.2", CFG, "a.cfg asks for 448 bytes, and it has others"),
        (np.zeros(20), "0.2", CFG, "is cut short: a.cfg asks for 448 bytes"),
        (np.zeros(9), "0.2", cut, "of its a.cfg: its layer 4 is .crnn., which is not read"),
        (np.zeros(9), "0.2", CFG.replace("-1, 0", "-1, 7"), "route. from layers that are not bef"),
        (np.zeros(9), "0.2", CFG.replace("=4", "=x"), "filters is 'x', and no whole number"),
        (np.zeros(9), "0.2", CFG.replace("groups=2", "groups=3"), "3 filters in 3 groups"),
        (np.zeros(9), "0.2", "filters=3", "no option of a section"),
        (np.zeros(9), "0.2", "[convolutional]", "it does not begin with .net."),
    ):
        (tmp_path / "a.cfg").unlink(missing_ok=True)
        with pytest.raises(UserError, match=message) as error:
            read_tensors(save(tmp_path, values, version, cfg))
        assert "\n" not in str(error.value) and "a.weights" in str(error.value)
    (tmp_path / "a.weights").write_bytes(b"<!DOCTYPE html><html><body>not here</body>")
    (tmp_path / "a.cfg").write_text(CFG)
    with pytest.raises(UserError, match="its header has no version"):
        read_tensors(tmp_path / "a.weights")
    with pytest.raises(UserError, match="do not agree in 0.biases"):
        darknet.write(tmp_path / "b.weights", CFG, {"0.weights": np.zeros((4, 2, 1, 1))})
