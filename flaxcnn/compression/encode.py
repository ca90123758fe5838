"""Variables to the bytes of a `.fcz` file; `flaxcnn.weights.formats.fcz` says what is in it."""

import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from flaxcnn.compression.huffman import find_lengths, make_codes, write_bits
from flaxcnn.weights.formats import fcz
from flaxcnn.weights.formats.fcz import Coded, pack, split_planes

Array = np.ndarray

_REACHES = (1, 3, 7, 15, 31, 63, 127, 255)
_MAX_VALUES = 256
_CHUNKS = (512, 1024)  # symbols of a stream; the longer ones where there are enough streams
_STREAMS = 512


class Symbols(NamedTuple):
    """A tensor as symbols: see `fcz.Coded`."""

    coded: Coded
    codebook: Array
    sequences: tuple[Array, ...]  # values, and gaps if there are any


class Encoded(NamedTuple):
    """A file, and what takes how many bytes of it.

    `tensors` are those that are coded, with their codes and their codebooks (as if packed alike);
    `plain` is all others together.
    """

    data: bytes
    tensors: dict[str, int]
    plain: int


def encode(variables: Mapping[str, Any], config: Mapping[str, Any]) -> Encoded:
    """Writes variables, exactly, with `config` of their network in the words of `flaxcnn push`.

    A tensor of up to 256 values other than 0 is Huffman coded, any other written as it is, in
    float32. The same variables give the same bytes.
    """
    flat: dict[str, Array] = {
        name: np.asarray(leaf, np.float32)
        for name, leaf in traverse_util.flatten_dict(variables, sep="/").items()  # pyright: ignore
    }
    found = {name: find_symbols(tensor) for name, tensor in flat.items()}
    coded = {name: symbols for name, symbols in found.items() if symbols is not None}
    plain = {name: tensor for name, tensor in flat.items() if name not in coded}
    sequences = [sequence for of in coded.values() for sequence in of.sequences]
    chunk = _CHUNKS[sum(map(len, sequences)) > _STREAMS * _CHUNKS[1]]
    header = fcz.Header(
        dict(config),
        {name: tensor.shape for name, tensor in plain.items()},
        {name: symbols.coded for name, symbols in coded.items()},
        chunk,
        (),
    )
    lengths = [
        find_lengths(np.bincount(sequence, minlength=alphabet))
        for sequence, (alphabet, _) in zip(sequences, header.sequences, strict=True)
    ]
    bits = [of[sequence] for of, sequence in zip(lengths, sequences, strict=True)]
    codes = [make_codes(of)[sequence] for of, sequence in zip(lengths, sequences, strict=True)]
    streams = [
        np.add.reduceat(of.astype(np.uint32), np.arange(0, len(of), chunk), dtype=np.uint32)
        for of in bits
    ]
    sections = [
        pack(part)
        for part in (
            _join(lengths, np.uint8).tobytes(),
            *split_planes(_join([of.codebook for of in coded.values()], np.float32)),
            *split_planes(_join([of.reshape(-1) for of in plain.values()], np.float32)),
            *split_planes(_join(streams, np.uint32)),
        )
    ]
    sizes = tuple(map(len, sections))
    header = header._replace(sections=sizes)
    body = [_write_header(header), *sections]
    body += [write_bits(_join(codes, np.int64), _join(bits, np.uint8))]
    data = b"".join(body)
    data = struct.pack("<4sI", fcz.MAGIC, zlib.crc32(data)) + data
    return Encoded(data, _share_bytes(coded, bits, sum(sizes[1:5])), sum(sizes[5:9]))


def find_symbols(tensor: Array) -> Symbols | None:
    """A tensor as the symbols that take least; None where it has too many values to gain by it."""
    values = np.unique(tensor)
    codebook = values[values != 0]
    bits = tensor.view(np.uint32) if tensor.ndim else tensor
    signed_zero = bool(np.any(bits == 0x80000000))
    if not 0 < len(codebook) <= _MAX_VALUES or signed_zero or not np.isfinite(codebook).all():
        return None
    if 2 * len(codebook) >= tensor.size:
        return None
    orders = _list_orders(tensor.ndim)
    dense = np.searchsorted(codebook, tensor.reshape(-1)) + 1
    dense[tensor.reshape(-1) == 0] = 0
    best = Symbols(
        Coded(tensor.shape, orders[0], len(codebook), 0, (tensor.size, 0)), codebook, (dense,)
    )
    least = _estimate(dense)
    for order in orders:
        flat = tensor.transpose(order).reshape(-1)
        places = np.flatnonzero(flat)
        numbers = np.searchsorted(codebook, flat[places])
        for reach in _REACHES:
            gaps = list_gaps(places, reach)
            cost = _estimate(numbers) + _estimate(gaps) + 4 * reach
            if cost < least:
                counts = len(numbers), len(gaps)
                coded = Coded(tensor.shape, order, len(codebook), reach, counts)
                best, least = Symbols(coded, codebook, (numbers, gaps)), cost
    return best


def list_gaps(places: Array, reach: int) -> Array:
    """The zeros before each of the weights at `places`; `reach` stands for so many and no weight.

    So a longer gap is several symbols (Han 2016, figure 2, where the filler is a zero of its own).
    """
    zeros = np.diff(places, prepend=-1) - 1
    fillers = zeros // reach
    gaps = np.full(len(places) + int(fillers.sum()), reach, np.int64)
    gaps[np.cumsum(fillers + 1) - 1] = zeros % reach
    return gaps


def _list_orders(ndim: int) -> list[tuple[int, ...]]:
    """Axes in the orders that are tried: as they are, outputs first, pixels last, ..."""
    if ndim == 4:
        return [(0, 1, 2, 3), (3, 2, 0, 1), (2, 3, 0, 1), (0, 1, 3, 2), (3, 0, 1, 2)]
    return [tuple(range(ndim)), tuple(reversed(range(ndim)))] if ndim > 1 else [tuple(range(ndim))]


def _estimate(symbols: Array) -> float:
    """Bits of a Huffman code: the entropy, and at least one for each symbol."""
    counts = np.bincount(symbols)
    counts = counts[counts > 0]
    entropy = float(-(counts * np.log2(counts / counts.sum())).sum())
    return max(entropy, float(len(symbols)))


def _join(parts: list[Array], dtype: Any) -> Array:
    return np.concatenate([np.zeros(0, dtype), *(part.astype(dtype) for part in parts)])


def _write_header(header: fcz.Header) -> bytes:
    values = {
        "config": header.config,
        "plain": header.plain,
        "coded": {
            name: [of.shape, of.order, of.values, of.reach, *of.counts]
            for name, of in header.coded.items()
        },
        "chunk": header.chunk,
        "sections": header.sections,
    }
    text = json.dumps(values, separators=(",", ":")).encode()
    packed = pack(text)
    return struct.pack("<II", len(packed), len(text)) + packed


def _share_bytes(coded: Mapping[str, Symbols], bits: list[Array], codebooks: int) -> dict[str, int]:
    """Bytes of each coded tensor: its codes, and its part of the packed codebooks."""
    parts, values = iter(bits), sum(len(of.codebook) for of in coded.values())
    sizes = {}
    for name, of in coded.items():
        total = sum(int(next(parts).sum(dtype=np.int64)) for _ in of.sequences)
        sizes[name] = total // 8 + codebooks * len(of.codebook) // values
    return sizes
