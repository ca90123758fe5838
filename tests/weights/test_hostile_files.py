"""Files that are no weights, or would do harm: one line each, soon, and without much memory."""

import random
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hostile_files import FILES, archive, safe

from flaxcnn.errors import UserError
from flaxcnn.weights import read_tensors
from flaxcnn.weights.formats import unpickle, zip_records

PYTORCH = Path(__file__).parents[1] / "reference" / "golden" / "pytorch"


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "weights.pth"


@pytest.mark.parametrize("name", FILES)
def test_it_is_refused_in_one_line(name, path):
    content, message = FILES[name]
    path.write_bytes(content)
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises(UserError) as error:
            read_tensors(path)
        seconds = time.process_time() - start
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    line = str(error.value)
    assert message in line
    assert line.startswith(f"weights: {path}") and line.isprintable() and len(line) <= 500
    assert seconds < 2 and peak < 2**24
    assert list(path.parent.iterdir()) == [path]


def test_what_does_not_end_is_refused(path, monkeypatch):
    monkeypatch.setattr(unpickle, "MAX_OPCODES", 1000)
    path.write_bytes(archive(b"\x80\2]" + b"q\0" * 2000 + b"."))
    with pytest.raises(UserError, match="its pickle has more than 1000 opcodes"):
        read_tensors(path)
    monkeypatch.setattr(zip_records, "MAX_RECORDS", 1)
    with pytest.raises(UserError, match="it says that it has 2 records, and may have 1"):
        read_tensors(path)


def test_what_is_no_file_is_refused(path):
    with pytest.raises(UserError, match=r"^weights: .*weights\.pth is not there$"):
        read_tensors(path)
    with pytest.raises(UserError, match=r"^weights: .* is a folder, and not a file$"):
        read_tensors(path.parent)


def test_damage_anywhere_is_harmless(path):
    """Bits turn and ends are lost: another value, or a line that says so."""
    random_ = random.Random(0)
    tensors = {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}
    files = [file.read_bytes() for file in sorted(PYTORCH.glob("*.*th"))] + [safe(tensors)]
    refused = 0
    for content in files:
        for _ in range(60):
            damaged = bytearray(content)
            for _ in range(random_.choice([1, 1, 4])):
                damaged[random_.randrange(len(damaged))] ^= 1 << random_.randrange(8)
            if random_.random() < 0.3:
                del damaged[random_.randrange(len(damaged)) :]
            path.unlink(missing_ok=True)  # the old one may still be mapped
            path.write_bytes(damaged)
            try:
                arrays = read_tensors(path)
            except UserError as error:
                assert str(error).isprintable()
                refused += 1
            else:
                assert all(isinstance(np.array(array), np.ndarray) for array in arrays.values())
    assert refused > 300
