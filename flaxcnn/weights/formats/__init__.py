"""Files of weights by their own names: safetensors, PyTorch, Keras, Darknet, 8-bit ones, .fcz.

Files come from anywhere, so nothing in one is run, what it says of its sizes is checked before
memory is taken, and what is wrong with it is one line (docs/pretrained.md).
"""

import importlib
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flaxcnn.errors import UserError
from flaxcnn.weights.formats.quantized import dequantize
from flaxcnn.weights.state_dict import find_state_dict

# What a damaged file makes a reader, or a library that it calls, raise.
_DAMAGES = (
    *(ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError),
    *(OverflowError, RecursionError, OSError, RuntimeError, struct.error),
)
# How files begin that are no weights, and what they are.
_OTHERS = {
    b"version https://git-lfs": "a pointer of Git LFS: fetch the file itself (git lfs pull)",
    b"<!DOCTYPE": "a web page: fetch the file itself",
    b"<html": "a web page: fetch the file itself",
    b"\x1f\x8b": "compressed by gzip: unpack it first",
    b"BZh": "compressed by bzip2: unpack it first",
    b"\x93NUMPY": "a single NumPy array",
}


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """Reads a file of weights: the arrays by the file's own names, as `convert` takes them.

    What a file is, its content says: safetensors (also packed by xz), PyTorch's zip archive or
    older stream (.pth, .pt, .th, .bin), Keras' .h5, the .fcz of `flaxcnn compress`; and Darknet's
    its name, .weights, with the .cfg of the same name beside it. Of a checkpoint these are the
    weights (see `state_dict.py`), of 8-bit weights with scales their float32 values. Arrays of
    PyTorch's and Darknet's files may be read-only views of the file, which must not be written to
    while they are in use.

    Raises UserError in one line that names the file: what it is instead, what is wrong in it, or
    that h5py is not installed, which Keras' files need (`pip install 'flaxcnn[keras]'`).
    """
    path = Path(path)
    if not path.is_file():
        kind = "a folder, and not a file" if path.is_dir() else "not there"
        raise UserError(f"weights: {path} is {kind}")
    try:
        tensors = find_state_dict(_read(path))
        arrays = {name: _to_array(name, tensor) for name, tensor in tensors.items()}
        return dequantize(arrays)
    except UserError as error:
        raise UserError(_to_line(f"weights: {path}: {error}")) from None
    except PermissionError:
        raise UserError(f"weights: {path} may not be read by this user") from None
    except _DAMAGES as error:
        raise UserError(_to_line(f"weights: {path} is damaged: {error!r}")) from error


def _read(path: Path) -> Mapping[Any, Any]:
    size = path.stat().st_size
    if not size:
        raise UserError("it is empty")
    if path.suffix == ".weights":
        return _format("darknet").read(path)
    with path.open("rb") as stream:
        start = stream.read(512)
        stream.seek(0)
        if start.startswith(b"\x89HDF\r\n\x1a\n"):
            return _format("keras").read(path)
        if start.startswith(b"\xfd7zXZ\x00"):
            return _format("safetensors").read_xz(stream, size)
        # Arrays are views of the mapping, which lives as long as they do.
        file = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        if start.startswith(b"FCZ"):
            return _format("fcz").read(memoryview(file))
        if start[8:9] == b"{":
            return _format("safetensors").read(memoryview(file))
        if start.startswith(b"PK\3\4"):
            return _format("pytorch").read_zip(memoryview(file))
        if start.startswith(b"\x80"):
            return _format("pytorch").read_stream(memoryview(file), file)
    for beginning, kind in _OTHERS.items():
        if start.startswith(beginning):
            raise UserError(f"it is {kind}")
    if start[257:262] == b"ustar":
        raise UserError("it is a tar archive; of PyTorch 0.1.1, load and save it once with PyTorch")
    raise UserError(
        "it is no file of weights: they are safetensors, .pth, .pt, .th, .h5, .fcz or .weights"
    )


def own_config(path: str | Path) -> dict[str, Any]:
    """What a .fcz file says of its network, in the words of `flaxcnn push`; of another file {}.

    Raises UserError in one line that names the file, for a damaged one.
    """
    with Path(path).open("rb") as stream:
        if not stream.read(3) == b"FCZ":
            return {}
    try:
        return _format("fcz").open_file(memoryview(Path(path).read_bytes()))[0].config
    except UserError as error:
        raise UserError(_to_line(f"weights: {path}: {error}")) from None
    except _DAMAGES as error:
        raise UserError(_to_line(f"weights: {path} is damaged: {error!r}")) from error


def _format(name: str) -> Any:
    return importlib.import_module(f"flaxcnn.weights.formats.{name}")


def _to_array(name: Any, tensor: Any) -> np.ndarray:
    if not (isinstance(name, str) and name.isprintable() and len(name) <= 1000):
        raise UserError(f"it has a tensor with the name {ascii(name)[:40]}")
    if isinstance(tensor, np.ndarray):
        return tensor
    if not hasattr(tensor, "read"):
        raise UserError(f"{name[:100]!r} is a {type(tensor).__name__}, and not a tensor")
    return tensor.read()


def _to_line(message: str) -> str:
    """One line that a terminal can show."""
    line = " ".join(message.split())
    line = "".join(c if c.isprintable() else "?" for c in line)
    return line if len(line) <= 400 else f"{line[:397]}..."
