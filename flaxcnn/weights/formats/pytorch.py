"""PyTorch's .pth, .pt and .th files, read without PyTorch and without running what they name.

Both containers: the zip archive of PyTorch 1.6 and later, and the stream of pickles and storages
before it. A tensor is a view of a storage, which several may share, as in `torch.load`.
"""

import io
import math
import struct
from collections.abc import Callable, Mapping
from typing import IO, Any

import ml_dtypes
import numpy as np

from flaxcnn.errors import UserError
from flaxcnn.weights.formats.unpickle import Global, Opaque, fill_dict, unpickle
from flaxcnn.weights.formats.zip_records import Buffer, list_records, read_record

Array = np.ndarray

STREAM_MAGIC = 0x1950A86A20F9469CFC6C
STREAM_PROTOCOL = 1001
MAX_PICKLE = 64 * 2**20  # bytes
MAX_EXPANDED = 2**24  # elements of a tensor that is larger than its storage

_DTYPES = {
    "Float": np.float32,
    "Double": np.float64,
    "Half": np.float16,
    "BFloat16": ml_dtypes.bfloat16,
    "Byte": np.uint8,
    "Char": np.int8,
    "Short": np.int16,
    "Int": np.int32,
    "Long": np.int64,
    "Bool": np.bool_,
    "ComplexFloat": np.complex64,
    "ComplexDouble": np.complex128,
}
# By `torch.dtype`, what has no storage of its own.
_OTHER_DTYPES = {
    "uint16": np.uint16,
    "uint32": np.uint32,
    "uint64": np.uint64,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "float8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
}


class Storage:
    """A row of elements that tensors are views of; where its bytes are is found later."""

    def __init__(self, key: str, dtype: np.dtype, size: int) -> None:
        self.key, self.dtype, self.size = key, dtype, size  # in bytes
        self.find: Callable[[], Buffer] | None = None
        self._bytes: Buffer | Array | None = None

    def read(self) -> Any:
        """Its bytes, aligned."""
        if self._bytes is None:
            assert self.find is not None
            content = np.frombuffer(self.find(), np.uint8)
            aligned = content.ctypes.data % 16 == 0
            self._bytes = content if aligned else content.copy()
        return self._bytes


class Tensor:
    """A view of a storage: checked to lie within it, and not read yet."""

    def __init__(self, storage: Storage, dtype: np.dtype, offset: int, shape: Any, strides: Any):
        numbers = (offset, *shape, *strides)
        if len(shape) != len(strides) or len(shape) > 32:
            raise UserError("it has a tensor whose size and strides do not fit together")
        if not all(type(n) is int and 0 <= n < 2**48 for n in numbers):
            raise UserError("it has a tensor with a negative or huge size, stride or offset")
        elements = storage.size // dtype.itemsize
        count = math.prod(shape)
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        if count and last >= elements:
            raise UserError(f"it has a tensor that ends outside of its storage of {elements}")
        if count > max(elements, MAX_EXPANDED):
            raise UserError(f"it has a tensor that repeats a storage of {elements} too often")
        self.storage, self.dtype, self.shape = storage, dtype, tuple(shape)
        self.offset, self.strides = offset, tuple(strides)

    def read(self) -> Array:
        """The tensor as a read-only array."""
        size = self.dtype.itemsize
        if not math.prod(self.shape):
            return np.zeros(self.shape, self.dtype)
        array = np.ndarray(
            self.shape,
            self.dtype,
            self.storage.read(),
            self.offset * size,
            [stride * size for stride in self.strides],
        )
        array.flags.writeable = False
        return array


def read_zip(file: Buffer) -> Any:
    """Reads a zip archive: what was saved, with a `Tensor` for each tensor."""
    records = list_records(file)
    pickles = [name for name in records if name.count("/") == 1 and name.endswith("/data.pkl")]
    if "model.weights.h5" in records:
        raise UserError("it is a .keras file, which has no names of layers: model.save('x.h5')")
    if len(pickles) != 1:
        raise UserError("it is a zip archive, and not one that torch.save has written")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}byteorder" in records:
        order = bytes(read_record(file, records, f"{folder}byteorder")[:16])
        if order != b"little":
            raise UserError("it was written on a big-endian machine: load and save it on another")
    if f"{folder}constants.pkl" in records:
        raise UserError("it is a TorchScript program: save the network's state_dict() instead")
    storages: dict[str, Storage] = {}
    unread = len(file)

    def load(identifier: Any) -> Storage:
        nonlocal unread
        dtype, key, size = _parse_identifier(identifier)
        if key in storages:
            return _check_same(storages[key], dtype, size)
        name = f"{folder}data/{key}"
        if name not in records:
            raise UserError(f"it has no record {name!r}")
        if records[name].size != size:
            raise UserError(f"its record {name!r} has {records[name].size} bytes, and not {size}")
        unread -= size
        if unread < 0:
            raise UserError("its records overlap")
        storages[key] = storage = Storage(key, dtype, size)
        storage.find = lambda: read_record(file, records, name)
        return storage

    if records[pickles[0]].size > MAX_PICKLE:
        raise UserError(f"its pickle is larger than {MAX_PICKLE} bytes")
    return unpickle(io.BytesIO(read_record(file, records, pickles[0])), ALLOWED, load)


def read_stream(file: Buffer, stream: IO[bytes]) -> Any:
    """Reads the older container; `stream` is at the beginning of `file`. As `read_zip`."""
    if unpickle(stream, {}) != STREAM_MAGIC or unpickle(stream, {}) != STREAM_PROTOCOL:
        raise UserError("it is a pickle, and not one that torch.save has written")
    system = unpickle(stream, {})
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise UserError("it was written on a big-endian machine: load and save it on another")
    storages: dict[str, Storage] = {}
    views: dict[str, Storage] = {}

    def load(identifier: Any) -> Storage:
        dtype, key, size = _parse_identifier(identifier, 6)
        storage = storages.setdefault(key, Storage(key, dtype, size))
        _check_same(storage, dtype, size)
        if identifier[5] is None:
            return storage
        part, offset, length = identifier[5]
        begin, end = offset * dtype.itemsize, (offset + length) * dtype.itemsize
        if not (isinstance(part, str) and 0 <= begin <= end <= size):
            raise UserError("it has a part of a storage that ends outside of it")
        view = views.setdefault(part, Storage(key, dtype, end - begin))
        view.find = view.find or (lambda: storage.read()[begin:end].data)
        return _check_same(view, dtype, end - begin)

    saved = unpickle(stream, ALLOWED, load)
    keys = unpickle(stream, {})
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise UserError("it has no list of storages")
    place = stream.tell()
    for key in keys:
        if key not in storages:
            raise UserError(f"it has a storage {key[:40]!r} of no tensor")
        storage, place = storages.pop(key), place + 8
        if place + storage.size > len(file):
            raise UserError("it is cut short: a storage ends outside of the file")
        (elements,) = struct.unpack_from("<q", file, place - 8)
        if elements * storage.dtype.itemsize != storage.size:
            raise UserError(f"its storage {key[:40]!r} has another size than its tensors say")
        content = file[place : place + storage.size]
        storage.find = lambda content=content: content
        place += storage.size
    if storages:
        raise UserError(f"it has no storage {next(iter(storages))[:40]!r}")
    return saved


def _parse_identifier(identifier: Any, length: int = 5) -> tuple[np.dtype, str, int]:
    """The dtype, key and bytes of a storage, of ("storage", type, key, location, elements)."""
    if isinstance(identifier, tuple) and identifier[:1] == ("module",):
        raise UserError("it holds a network's code: save the network's state_dict() instead")
    match identifier:
        case ("storage", Global(value=np.dtype() as dtype), str(key), str(), int(size), *_):
            if len(identifier) == length and 0 <= size < 2**48:
                return dtype, key, size * dtype.itemsize
    raise UserError("it refers to data that is no storage")


def _check_same(storage: Storage, dtype: np.dtype, size: int) -> Storage:
    if storage.dtype != dtype or storage.size != size:
        raise UserError(f"it has two types or sizes for storage {storage.key[:40]!r}")
    return storage


def _make_dict(items: Any = ()) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    if isinstance(items, dict):
        items = items.items()
    elif not isinstance(items, (list, tuple)):
        raise TypeError("pickle with a dict of no pairs")
    fill_dict(result, items)
    return result


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> Tensor:
    if not (isinstance(storage, Storage) and type(shape) is type(strides) is tuple):
        raise UserError("it has a tensor without a storage")
    return Tensor(storage, storage.dtype, offset, shape, strides)


def _rebuild_tensor_v2(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, metadata: Any = None
) -> Tensor:
    if metadata:
        raise UserError("it has a tensor that is conjugated or negated: clone() it, and save again")
    return _rebuild_tensor(storage, offset, shape, strides)


def _rebuild_tensor_v3(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    grad: Any,
    hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> Tensor:
    tensor = _rebuild_tensor_v2(storage, offset, shape, strides, grad, hooks, metadata)
    if not (isinstance(dtype, Global) and isinstance(dtype.value, np.dtype)):
        raise UserError("it has a tensor of no type")
    return Tensor(storage, dtype.value, offset, tensor.shape, tensor.strides)


def _rebuild_parameter(data: Any, grad: Any, hooks: Any, state: Any = None) -> Any:
    return data


def _rebuild_from_type(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """A tensor with attributes, or of a class that adds nothing to a tensor."""
    if isinstance(function, Global) and function.value in (_rebuild_tensor_v2, _rebuild_tensor_v3):
        return function.value(*arguments)
    raise UserError("it has a tensor of a class that is not known")


def _list_allowed() -> Mapping[str, Any]:
    allowed: dict[str, Any] = {
        "collections.OrderedDict": _make_dict,
        "collections.Counter": _make_dict,
        "torch.Size": lambda items=(): tuple(items),
        "torch.Tensor": None,
        "torch.nn.parameter.Parameter": None,
        "torch.nn.parameter.Buffer": None,
        "torch._utils._rebuild_tensor": _rebuild_tensor,
        "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
        "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
        "torch._utils._rebuild_parameter": _rebuild_parameter,
        "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
        "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
        "torch.storage.UntypedStorage": np.dtype(np.uint8),
    }
    allowed |= {f"torch.{name}Storage": np.dtype(dtype) for name, dtype in _DTYPES.items()}
    allowed |= {f"torch.{name}": np.dtype(dtype) for name, dtype in _OTHER_DTYPES.items()}
    # What is beside the weights in a checkpoint of a training run: arguments, the best accuracy.
    for name in (
        *("argparse.Namespace", "torch.device", "_codecs.encode", "numpy.dtype"),
        *("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),
        *("builtins.set", "__builtin__.set"),
    ):
        allowed[name] = Opaque
    return allowed


ALLOWED = _list_allowed()
