"""Checkpoints, prefixed names and arrays of other libraries give the same weights as plain ones."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from flaxcnn.errors import UserError
from flaxcnn.weights.rules import CONVENTIONS
from flaxcnn.weights.state_dict import find_tensors, shape_of, to_float32

TORCH = CONVENTIONS["torchvision"]
PLAIN = {"conv1.weight": 1, "bn1.weight": 2, "bn1.num_batches_tracked": 3}


class Tensor:
    """What `convert` meets in a PyTorch tensor, with its refusals."""

    def __init__(self, array, requires_grad=False, device="cpu"):
        self.array, self.requires_grad, self.device = array, requires_grad, device

    @property
    def shape(self):
        return self.array.shape

    def detach(self):
        return Tensor(self.array, False, self.device)

    def cpu(self):
        return Tensor(self.array, self.requires_grad, "cpu")

    def float(self):
        return Tensor(self.array.astype(np.float32), self.requires_grad, self.device)

    def numpy(self):
        if self.requires_grad:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.")
        if self.device != "cpu" or self.array.dtype == ml_dtypes.bfloat16:
            raise TypeError("can't convert cuda:0 tensor, or Got unsupported ScalarType BFloat16")
        return self.array


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.", "net."])
def test_a_prefix_of_all_names_is_taken_off(prefix):
    assert find_tensors({prefix + name: x for name, x in PLAIN.items()}, TORCH) == PLAIN


def test_a_prefix_of_some_names_stays():
    mixed = {"module.conv1.weight": 1, "bn1.weight": 2}
    assert find_tensors(mixed, TORCH) == mixed
    assert find_tensors({"model.conv1": 1}, CONVENTIONS["keras"]) == {"model.conv1": 1}


def test_the_averaged_model_s_counter_has_no_prefix():
    averaged = {f"module.{name}": x for name, x in PLAIN.items()} | {"n_averaged": 5}
    assert find_tensors({"model_ema": averaged}, TORCH) == PLAIN | {"n_averaged": 5}


@pytest.mark.parametrize(
    "key", ["state_dict", "model", "model_state_dict", "net", "state_dict_ema"]
)
def test_a_checkpoint_has_the_tensors_under_a_key(key):
    assert find_tensors({"epoch": 90, key: PLAIN, "optimizer": {"state": {}}}, TORCH) == PLAIN


def test_averaged_weights_come_before_plain_ones():
    checkpoint = {"state_dict": {"a": 1}, "model": {"b": 1}, "state_dict_ema": PLAIN}
    assert find_tensors(checkpoint, TORCH) == PLAIN
    assert find_tensors(checkpoint | {"state_dict_ema": None}, TORCH) == {"a": 1}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, 2], "^weights must map names to arrays, and are a list$"),
        (
            {"weights": PLAIN, "epoch": 1},
            "^weights: 'weights' is a dict, and not an array; a check",
        ),
    ],
)
def test_what_has_no_tensors_is_refused(weights, message):
    with pytest.raises(UserError, match=message):
        find_tensors(weights, TORCH)


VALUES = np.array([[1.0, -2.5, 65504.0, 2**-24]], np.float16)  # the largest and the smallest


@pytest.mark.parametrize(
    "tensor",
    [
        VALUES,
        VALUES.tolist(),
        jnp.asarray(VALUES),
        Tensor(VALUES),
        Tensor(VALUES, requires_grad=True, device="cuda"),
        Tensor(VALUES.astype(np.float32), requires_grad=True),
    ],
)
def test_arrays_of_any_library_keep_their_values(tensor):
    array = to_float32("x", tensor)
    assert isinstance(array, np.ndarray) and array.dtype == np.float32
    assert array.tolist() == VALUES.tolist()
    assert shape_of(tensor) == (1, 4)


@pytest.mark.parametrize("wrap", [lambda x: x, jnp.asarray, Tensor])
def test_bfloat16_keeps_its_values(wrap):
    bits = np.array([0x3F80, 0xC020, 0x7F7F, 0x0080], np.uint16)  # bfloat16: the upper half
    array = to_float32("x", wrap(bits.view(ml_dtypes.bfloat16)))
    assert array.dtype == np.float32
    assert array.tolist() == (bits.astype(np.uint32) << 16).view(np.float32).tolist()


def test_quantized_weights_are_refused():
    with pytest.raises(UserError, match=r"weights: conv1\.weight holds uint8, and not floating"):
        to_float32("conv1.weight", np.zeros(3, np.uint8))
