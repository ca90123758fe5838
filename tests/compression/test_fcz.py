"""A file gives back the very bits, and a damaged one nothing."""

import functools
import json
import random
import struct
import time
import zlib

import numpy as np
import pytest

import flaxcnn
from flaxcnn.compression.encode import encode, list_gaps
from flaxcnn.compression.table import format_table, make_table
from flaxcnn.errors import UserError
from flaxcnn.weights import read_tensors
from flaxcnn.weights.formats import fcz

CONFIG = {"flaxcnn": {"model": "lenet_caffe", "layout": "flaxcnn"}}


@functools.cache
def make_variables():
    """Tensors that are sparse, dense, of one value, of all values, empty of weights, plain."""
    rng = np.random.default_rng(0)

    def sparse(shape, share, size):
        codebook = rng.normal(size=size).astype(np.float32)
        return np.where(rng.random(shape) < share, rng.choice(codebook, shape), np.float32(0))

    conv = sparse((3, 3, 16, 32), 0.1, 32)
    conv[:, :, 3] = 0  # gaps that are longer than the reach
    return {
        "params": {
            "conv": {"kernel": conv, "bias": rng.normal(size=32).astype(np.float32)},
            "dense": {"kernel": sparse((40, 30), 0.95, 256)},
            "full": {"kernel": rng.normal(size=(5, 7)).astype(np.float32)},
            "one": {"kernel": sparse((50, 40), 0.02, 1)},
            "nothing": {"kernel": np.zeros((30, 10), np.float32)},
            "signed": {"kernel": np.where(rng.random((9, 9)) < 0.5, -0.0, 1.0).astype(np.float32)},
        },
        "batch_stats": {"bn": {"mean": np.float32([np.inf, np.nan, -0.0, 1e-42])}},
    }


@functools.cache
def make_file() -> bytes:
    return encode(make_variables(), CONFIG).data


def list_arrays():
    for kind, layers in make_variables().items():
        for layer, leaves in layers.items():
            yield from ((f"{kind}/{layer}/{leaf}", array) for leaf, array in leaves.items())


def test_the_bits_come_back(tmp_path):
    (tmp_path / "a.fcz").write_bytes(make_file())
    tensors, expected = read_tensors(tmp_path / "a.fcz"), dict(list_arrays())
    assert tensors.keys() == expected.keys()
    for name, array in expected.items():
        assert tensors[name].dtype == np.float32 and tensors[name].shape == array.shape
        np.testing.assert_array_equal(tensors[name].view(np.uint32), array.view(np.uint32), name)
    header, _ = fcz.open_file(memoryview(make_file()))
    assert header.config == CONFIG
    kinds = {name.split("/")[1]: of.reach > 0 for name, of in header.coded.items()}
    assert kinds == {"conv": True, "dense": False, "one": True}


def test_the_same_variables_give_the_same_file():
    assert encode(make_variables(), CONFIG).data == make_file()


@pytest.mark.parametrize("reach", [1, 3, 15])
def test_gaps_count_zeros(reach):
    """By walking over the weights, as figure 2 of Han 2016 does."""
    flat = np.random.default_rng(0).random(200) < 0.1
    expected, zeros = [], 0
    for weight in flat:
        if weight:
            expected.append(zeros)
            zeros = 0
        else:
            zeros += 1
            if zeros == reach:
                expected.append(reach)
                zeros = 0
    # Zeros after the last weight have no symbol.
    while expected and expected[-1] == reach:
        expected.pop()
    assert list_gaps(np.flatnonzero(flat), reach).tolist() == expected


def test_cut_and_damaged_files_are_refused(tmp_path):
    data, rng = make_file(), random.Random(0)
    file = tmp_path / "a.fcz"
    cuts = [data[:size] for size in (5, 15, 16, len(data) // 2, len(data) - 1)]
    flips = []
    for place in [4, 8, 12, *(rng.randrange(16, len(data)) for _ in range(20))]:
        flips.append(
            data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]
        )
    for content in (*cuts, *flips, data + b"\0"):
        file.write_bytes(content)
        with pytest.raises(UserError, match="a.fcz: it is (damaged or )?cut short"):
            read_tensors(file)


def test_what_has_the_right_checksum_is_still_checked(tmp_path):
    """One byte of each hundred is changed, by one who knows the format: an error, or other weights.

    None takes long, or much memory, and none is anything but a UserError.
    """
    data, rng = make_file(), random.Random(1)
    file = tmp_path / "a.fcz"
    refused = 0
    for _ in range(300):
        body = bytearray(data[8:])
        for _ in range(rng.randrange(1, 4)):
            body[rng.randrange(len(body))] = rng.randrange(256)
        file.write_bytes(data[:4] + struct.pack("<I", zlib.crc32(body)) + body)
        try:
            read_tensors(file)
        except UserError:
            refused += 1
    assert refused > 100


def write_header(values) -> bytes:
    text = json.dumps(values).encode()
    packed = fcz.pack(text)
    body = struct.pack("<II", len(packed), len(text)) + packed
    return fcz.MAGIC + struct.pack("<I", zlib.crc32(body)) + body


SOUND = {"config": {}, "plain": {}, "coded": {}, "chunk": 512, "sections": [0] * 13}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"plain": {"w": [2**14, 2**14]}}, "unpacks to over"),
        ({"coded": {"w": [[2**30], [0], 1, 1, 1, 1]}}, "unpacks to over"),
        ({"plain": {"w": [-1, -1]}}, "negative or huge"),
        ({"coded": {"w": [[100], [0], 10**6, 1, 1, 1]}}, "codebook of 1000000"),
        ({"coded": {"w": [[9000], [0], 1, 0, 9000, 0]}}, "more symbols than the file has bits"),
        ({"coded": {"w": [[100], [0], 1, 1, 200, 1]}}, "more symbols than weights"),
        ({"coded": {"w": [[100], [1], 1, 1, 1, 1]}}, "has axes"),
        ({"chunk": 0}, "more symbols than"),
        ({"sections": [0] * 12}, "sections"),
        ({"sections": [10**6] * 13}, "sections"),
        ({"config": []}, "no config"),
        ({"coded": {"w": 3}}, "damaged"),
    ],
)
def test_sizes_are_bounded_before_memory_is_taken(change, message, tmp_path):
    (tmp_path / "a.fcz").write_bytes(write_header(SOUND | change))
    with pytest.raises(UserError, match=message):
        read_tensors(tmp_path / "a.fcz")


def test_a_file_knows_its_network(tmp_path):
    config = {
        "num_classes": 3,
        "label_names": ["a", "b", "c"],
        "model_args": {"hidden": [5]},
        "pretrained_cfg": {"input_size": [1, 4, 4], "mean": [0.25], "std": [0.5]},
        "flaxcnn": {"model": "mnist_mlp_512", "layout": "flaxcnn"},
    }
    rng = np.random.default_rng(0)
    shapes = {"fc1": (16, 5), "classifier": (5, 3)}
    params = {
        name: {"kernel": rng.choice(np.float32([0, 0.5, -1]), shape), "bias": np.ones(shape[1])}
        for name, shape in shapes.items()
    }
    file = tmp_path / "a.fcz"
    file.write_bytes(encode({"params": params}, config).data)
    model, variables, preprocessing = flaxcnn.from_pretrained(str(file))
    assert tuple(model.hidden) == (5,) and model.num_classes == 3
    assert (preprocessing.image_size, preprocessing.mean) == ((4, 4), (0.25,))
    for name, leaves in params.items():
        for leaf, array in leaves.items():
            np.testing.assert_array_equal(variables["params"][name][leaf], array)
    with pytest.raises(UserError, match="weights of mnist_mlp_512, and they load as"):
        flaxcnn.from_pretrained(str(file), model_name="lenet_caffe")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"^weights: .*a\.fcz: it is damaged or cut short"):
        flaxcnn.from_pretrained(str(file))


def test_a_table_is_of_the_whole_file():
    variables = {"params": make_variables()["params"]}
    file = encode(variables, CONFIG)
    rows = make_table(variables, variables, file)
    for column in zip(*(row[1:] for row in rows[:-1]), strict=True):
        assert min(column) >= 0
    assert rows[-1].coded == len(file.data) == sum(row.coded for row in rows[:-1])
    assert rows[-1].float32 == sum(a.nbytes for name, a in list_arrays() if "params" in name)
    conv = next(row for row in rows if row.name == "conv/kernel")
    kernel = make_variables()["params"]["conv"]["kernel"]
    assert conv.kept == np.count_nonzero(kernel) < conv.weights == kernel.size
    # 32 bits and a gap of 1 to 8 bits for each weight that is left, and its fillers.
    assert 33 / 8 * conv.kept <= conv.pruned <= 1.1 * 40 / 8 * conv.kept
    assert conv.coded < conv.shared < conv.pruned < conv.float32
    text = format_table(rows, {"whole file": 44_000})
    assert len(text.splitlines()) == len(rows) + 2 and "| 44,000 |" in text


@pytest.mark.slow
def test_squeezenet_of_the_release(shared, tmp_path):
    """Its weights are shared already: all bits come back from 560,000 bytes, at over 50 MB/s."""
    source = shared / "data" / "weights" / "squeezenet_v1.0_deepcompression.safetensors.xz"
    tensors = read_tensors(source)
    nested = {}
    for name, tensor in tensors.items():
        nested.setdefault("params", {})[name.replace("/", "_")] = tensor
    data = encode(nested, CONFIG).data
    assert len(data) <= 560_000
    (tmp_path / "a.fcz").write_bytes(data)
    times = []
    for _ in range(3):
        start = time.process_time()
        found = read_tensors(tmp_path / "a.fcz")
        times.append(time.process_time() - start)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[f"params/{name.replace('/', '_')}"], tensor)
    assert sum(tensor.nbytes for tensor in tensors.values()) / min(times) > 50e6
