"""safetensors: a header in JSON, then the arrays; also packed by xz.

The library reads no bfloat16 from memory, and no 8-bit floats, into NumPy; the format is simple.
"""

import json
import lzma
import math
import struct
from typing import IO, Any

import ml_dtypes
import numpy as np

from flaxcnn.errors import UserError

Array = np.ndarray
Buffer = memoryview

MAX_HEADER = 25 * 2**20  # bytes; 100 for each tensor is usual
MAX_EXPANSION = 100  # of a packed file; SqueezeNet's pruned weights expand 7 times
MAX_UNPACKER = 2**27  # bytes of memory for the dictionary: xz -9 takes half

_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
    "C64": np.complex64,
}


def read(file: Buffer) -> dict[str, Array]:
    """Reads a file's tensors: read-only views of it."""
    (length,) = struct.unpack_from("<Q", file)
    if length > len(file) - 8:
        raise UserError("it is cut short: its header ends outside of the file")
    if length > MAX_HEADER:
        raise UserError(f"its header is larger than {MAX_HEADER} bytes")
    header = json.loads(bytes(file[8 : 8 + length]), object_pairs_hook=_make_dict)
    header.pop("__metadata__", None)
    data = file[8 + length :]
    arrays: dict[str, Array] = {}
    end_before = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = entry["data_offsets"]
        shape, dtype = entry["shape"], entry["dtype"]
        if dtype not in _DTYPES:
            raise UserError(f"its tensor {name[:100]!r} has the unknown type {str(dtype)[:20]!r}")
        if not all(type(n) is int and 0 <= n < 2**48 for n in (begin, end, *shape)):
            raise UserError(f"its tensor {name[:100]!r} has a negative or huge size or place")
        kind = np.dtype(_DTYPES[dtype])
        if begin != end_before or end > len(data):
            raise UserError(f"its tensor {name[:100]!r} does not follow the one before in the file")
        if len(shape) > 32 or math.prod(shape) * kind.itemsize != end - begin:
            raise UserError(f"its tensor {name[:100]!r} has another size than its shape says")
        array = np.frombuffer(data[begin:end], kind)
        array = array if array.flags.aligned else array.copy()
        arrays[name] = array.reshape(shape)
        end_before = end
    if end_before != len(data):
        raise UserError(f"it has {len(data) - end_before} bytes more than its header says")
    return arrays


def read_xz(stream: IO[bytes], size: int) -> dict[str, Array]:
    """Reads a file that xz has packed into `size` bytes."""
    limit = MAX_EXPANSION * size
    unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_UNPACKER)
    try:
        content = unpacker.decompress(stream.read(), limit + 1)
    except lzma.LZMAError as error:
        raise UserError(f"it is damaged: {error}") from None
    if len(content) > limit:
        raise UserError(f"it unpacks to more than {MAX_EXPANSION} times its size")
    if not unpacker.eof:
        raise UserError("it is cut short")
    if content[8:9] != b"{":
        raise UserError("it holds no safetensors file")
    return read(memoryview(content))


def _make_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise UserError("its header has a name twice")
    return result
