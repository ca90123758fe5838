"""`.fcz`: pruned and shared weights, Huffman coded; `flaxcnn.compression` writes them.

    4 bytes   "FCZ1"
    4 bytes   CRC-32 of all that follows
    8 bytes   size of the header as it is packed, and unpacked (two uint32; all is little-endian)
    header    JSON, packed by LZMA: `config`, in the words of `flaxcnn push`, and the layout
    sections  what is small, each packed by LZMA or as it is: lengths of codes, codebooks, plain
              tensors, bits of each stream
    codes     one stream of bits after another, the highest bit of a byte first

A tensor of few distinct values is two sequences of symbols: `values` are numbers in its codebook,
and `gaps` how many zeros come before each (Han 2016, figure 2: the gap `reach` stands for so many
zeros and no value). With `reach` 0 there are no gaps and number 0 is the value 0. Each sequence
has a canonical Huffman code of its own and is cut into streams of `chunk` symbols, so that NumPy
decodes all streams side by side, a symbol of each at a time.
"""

import itertools
import json
import lzma
import math
import struct
import zlib
from typing import Any, NamedTuple

import numpy as np

from flaxcnn.errors import UserError

Array = np.ndarray

MAGIC = b"FCZ1"
PREFIX = struct.Struct("<4sIII")
MAX_HEADER = 2**20  # bytes
MAX_VALUES, MAX_REACH = 256, 255
MAX_EXPANSION = 2000  # float32 bytes for each byte; 99.5 % zeros are some 800
MAX_CODE = 12  # bits of a symbol
MAX_CHUNK = 2**16
LZMA: list[dict[str, Any]] = [
    {"id": lzma.FILTER_LZMA1, "dict_size": 2**20, "lc": 0, "lp": 0, "pb": 0, "nice_len": 273}
]


class Coded(NamedTuple):
    """A tensor as the header has it.

    Attributes:
      shape: of the tensor.
      order: its axes in the order in which they are flattened, the slowest first.
      values: how many values the codebook has.
      reach: the largest gap; 0 where zeros are values.
      counts: symbols of the values, and of the gaps.
    """

    shape: tuple[int, ...]
    order: tuple[int, ...]
    values: int
    reach: int
    counts: tuple[int, int]

    @property
    def alphabets(self) -> tuple[int, int]:
        """Symbols that there are of values, and of gaps."""
        return (self.values, self.reach + 1) if self.reach else (self.values + 1, 0)


class Header(NamedTuple):
    """What a file says of itself."""

    config: dict[str, Any]
    plain: dict[str, tuple[int, ...]]  # shapes of tensors that are not coded
    coded: dict[str, Coded]
    chunk: int  # symbols of a stream
    sections: tuple[int, ...]  # their bytes in the file

    @property
    def sequences(self) -> list[tuple[int, int]]:
        """(alphabet, symbols) of each sequence: the values and gaps of one tensor after another."""
        pairs = [zip(of.alphabets, of.counts, strict=True) for of in self.coded.values()]
        return [(alphabet, count) for alphabet, count in itertools.chain(*pairs) if count]

    @property
    def stream_counts(self) -> Array:
        """Symbols of each stream."""
        parts = [
            np.minimum(self.chunk, count - np.arange(0, count, self.chunk))
            for _, count in self.sequences
        ]
        return np.concatenate([np.zeros(0, np.int64), *parts])

    @property
    def section_sizes(self) -> list[int]:
        """Bytes of each section as it is unpacked: see `split_planes` of floats and of streams."""
        plain = sum(map(math.prod, self.plain.values()))
        streams = len(self.stream_counts)
        return [
            sum(alphabet for alphabet, _ in self.sequences),
            *[sum(of.values for of in self.coded.values())] * 4,
            *[plain] * 4,
            *[streams] * 4,
        ]


def read(file: memoryview) -> dict[str, Array]:
    """Reads a file's tensors, float32, by our own paths ("params/stem/kernel")."""
    header, rest = open_file(file)
    sizes = header.section_sizes
    if len(header.sections) != len(sizes) or sum(header.sections) > len(rest):
        raise UserError("it is damaged: its sections are not those of its tensors")
    ends = list(itertools.accumulate(header.sections))
    parts = [
        unpack(rest[end - packed : end], size)
        for end, packed, size in zip(ends, header.sections, sizes, strict=True)
    ]
    codebooks, plain = (join_planes(parts[i : i + 4], "<f4") for i in (1, 5))
    bits = join_planes(parts[9:13], "<u4").astype(np.int64)
    lengths = np.frombuffer(parts[0], np.uint8)
    symbols = decode(rest[ends[-1] :], header, lengths, bits)
    tensors, place = {}, 0
    for name, shape in header.plain.items():
        size = math.prod(shape)
        tensors[name] = plain[place : place + size].reshape(shape)
        place += size
    place = 0
    for name, of in header.coded.items():
        values, gaps = (next(symbols) if count else np.zeros(0, np.int64) for count in of.counts)
        tensors[name] = _rebuild(of, codebooks[place : place + of.values], values, gaps)
        place += of.values
    return tensors


def open_file(file: memoryview) -> tuple[Header, memoryview]:
    """The header, and what comes after it. Raises UserError for a file that is not as written."""
    if len(file) < PREFIX.size:
        raise UserError("it is cut short")
    magic, checksum, packed, unpacked = PREFIX.unpack_from(file)
    if magic != MAGIC:
        raise UserError("it is no .fcz file of this version")
    if zlib.crc32(file[8:]) != checksum:
        raise UserError("it is damaged or cut short: its checksum is another")
    body = file[PREFIX.size :]
    if packed > len(body) or unpacked > MAX_HEADER:
        raise UserError("its header is larger than the file, or than it may be")
    header = _read_header(json.loads(unpack(body[:packed], unpacked)))
    _check_sizes(header, len(file))
    return header, body[packed:]


def _read_header(values: dict[str, Any]) -> Header:
    if not isinstance(values["config"], dict):
        raise UserError("its header has no config")

    def whole(numbers: Any, most: int = 2**40) -> tuple[int, ...]:
        if not all(type(n) is int and 0 <= n < most for n in numbers):
            raise UserError("its header has a negative or huge number")
        return tuple(numbers)

    coded = {}
    for name, (shape, order, *numbers) in values["coded"].items():
        count, reach, *counts = whole(numbers)
        if sorted(order) != list(range(len(shape))):
            raise UserError(f"its tensor {name[:100]!r} has axes {order} of {len(shape)}")
        coded[name] = Coded(whole(shape), whole(order), count, reach, (counts[0], counts[1]))
    plain = {name: whole(shape) for name, shape in values["plain"].items()}
    (chunk,) = whole([values["chunk"]], MAX_CHUNK + 1)
    return Header(values["config"], plain, coded, chunk, whole(values["sections"]))


def _check_sizes(header: Header, size: int) -> None:
    """Raises UserError where memory for what the header says would be more than `size` is worth."""
    shapes = [*header.plain.values(), *(of.shape for of in header.coded.values())]
    if (
        4 * sum(map(math.prod, shapes)) > MAX_EXPANSION * size
        or max(map(len, shapes), default=0) > 32
    ):
        raise UserError(f"its header says that it unpacks to over {MAX_EXPANSION} times its size")
    if header.plain.keys() & header.coded.keys():
        raise UserError("its header has a name twice")
    for of in header.coded.values():
        values, gaps = of.counts
        if of.values > MAX_VALUES or of.reach > MAX_REACH:
            raise UserError(f"its header has a codebook of {of.values}, or gaps of {of.reach}")
        if max(of.values, values, gaps) > math.prod(of.shape):
            raise UserError("its header has more symbols than weights")
    # A symbol takes a bit or more.
    if header.chunk < 1 or sum(count for _, count in header.sequences) > 8 * size:
        raise UserError("its header has more symbols than the file has bits")


def pack(data: bytes) -> bytes:
    """By LZMA, or as it is where that is not shorter."""
    packed = lzma.compress(data, lzma.FORMAT_RAW, filters=LZMA)
    return packed if len(packed) < len(data) else data


def unpack(data: memoryview, size: int) -> bytes:
    """The `size` bytes that were packed. Raises UserError if they are others."""
    if len(data) == size:
        return bytes(data)
    unpacker = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=LZMA)
    try:
        found = unpacker.decompress(bytes(data), size + 1)
    except (lzma.LZMAError, EOFError) as error:
        raise UserError(f"it is damaged: {error}") from None
    if len(found) != size:
        raise UserError("it is damaged: a section has another size than its header says")
    return found


def split_planes(array: Array) -> list[bytes]:
    """Numbers of four bytes as four planes, the lowest bytes first, which pack better apart."""
    planes = np.ascontiguousarray(array).view(np.uint8).reshape(-1, 4)
    return [planes[:, i].tobytes() for i in range(4)]


def join_planes(planes: list[bytes], kind: str) -> Array:
    """The inverse of `split_planes`."""
    stacked = np.stack([np.frombuffer(plane, np.uint8) for plane in planes], 1)
    return np.ascontiguousarray(stacked).view(kind).reshape(-1)


def decode(codes: memoryview, header: Header, lengths: Array, bits: Array) -> Any:
    """Iterates over the symbols of each sequence.

    `lengths` of all alphabets' codes one after another, `bits` of each stream.
    """
    counts, chunk = header.stream_counts, header.chunk
    starts = np.cumsum(bits) - bits
    if len(bits) and (starts[-1] + bits[-1] + 7) // 8 != len(codes):
        raise UserError("it is damaged: its streams are longer or shorter than the file")
    tables, widths, place = [], [], 0
    for alphabet, _ in header.sequences:
        table, width = _make_table(lengths[place : place + alphabet])
        tables.append(table)
        widths.append(width)
        place += alphabet
    # A Huffman code of n bits is of as many symbols as the n-th Fibonacci number, or more.
    if sum(map(len, tables)) > 2**16 + 128 * len(codes):
        raise UserError("it is damaged: its codes are longer than its symbols can need")
    rows = [-(-count // chunk) for _, count in header.sequences]
    bases = np.cumsum([0, *map(len, tables)])[:-1]
    found = _run(
        _list_words(codes),
        np.concatenate([np.zeros(0, np.int64), *tables]),
        starts=starts,
        ends=starts + bits,
        counts=counts,
        bases=np.repeat(bases, rows),
        widths=np.repeat(np.array(widths, np.int64), rows),
    )
    row = 0
    for (alphabet, count), used in zip(header.sequences, rows, strict=True):
        sequence = found[row : row + used].reshape(-1)[:count]
        if sequence.max() >= alphabet:
            raise UserError("it is damaged: a code stands for no symbol")
        yield sequence
        row += used


def _make_table(lengths: Array) -> tuple[Array, int]:
    """Of a canonical code: for the next `width` bits, 16 symbol + length; and `width`."""
    width = int(lengths.max(initial=0))
    if not 0 < width <= MAX_CODE:
        raise UserError(f"its codes have up to {width} bits, and not 1 to {MAX_CODE}")
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] > 0]
    spans = 1 << (width - lengths[order].astype(np.int64))
    left = (1 << width) - int(spans.sum())
    if left < 0:
        raise UserError("its codes cannot be told apart")
    # What begins no code is a symbol outside of every alphabet.
    entries = np.append(16 * order + lengths[order], 16 * 2**20 + 1)
    return np.repeat(entries, np.append(spans, left)), width


def _list_words(codes: memoryview) -> Array:
    """The 32 bits from each byte on: int64 [bytes + 1], zeros after the end."""
    padded = np.frombuffer(bytes(codes) + bytes(4), np.uint8)
    words = padded[: len(codes) + 1].astype(np.int64)
    for i in range(1, 4):
        words <<= 8
        words |= padded[i : len(codes) + 1 + i]
    return words


def _run(
    words: Array,
    table: Array,
    *,
    starts: Array,
    ends: Array,
    counts: Array,
    bases: Array,
    widths: Array,
) -> Array:
    """Decodes all streams side by side: int32 [streams, symbols of the longest]."""
    by_length = np.argsort(-counts, kind="stable")
    steps, streams = int(counts.max(initial=0)), len(counts)
    position, base = starts[by_length], bases[by_length]
    shift, mask = 32 - widths[by_length], (1 << widths[by_length]) - 1
    out = np.empty((steps, streams), np.int64)
    # How many streams are not yet at their end.
    running = streams - np.cumsum(np.bincount(counts, minlength=steps))[:steps]
    bit, index = np.empty(streams, np.int64), np.empty(streams, np.int64)
    changes = [0, *(np.flatnonzero(np.diff(running)) + 1).tolist(), steps]
    for first, last in itertools.pairwise(changes):
        n = int(running[first]) if first < last else 0
        p, b, i, s, m, o = (x[:n] for x in (position, bit, index, shift, mask, base))
        for step in range(first, last):
            np.right_shift(p, 3, out=i)
            np.bitwise_and(p, 7, out=b)
            np.subtract(s, b, out=b)
            row = out[step, :n]
            words.take(i, out=row, mode="clip")
            np.right_shift(row, b, out=row)
            np.bitwise_and(row, m, out=row)
            np.add(row, o, out=i)
            table.take(i, out=row, mode="clip")
            np.bitwise_and(row, 15, out=b)
            np.add(p, b, out=p)
    if not np.array_equal(position, ends[by_length]):
        raise UserError("it is damaged: a stream ends at another bit than it says")
    symbols = np.empty((streams, steps), np.int32)
    symbols[by_length] = out.T >> 4
    return symbols


def _rebuild(of: Coded, codebook: Array, values: Array, gaps: Array) -> Array:
    """The tensor of its symbols."""
    shape = tuple(of.shape[axis] for axis in of.order)
    if not of.reach:
        if len(values) != math.prod(shape):
            raise UserError("it is damaged: a tensor has fewer symbols than weights")
        flat = np.append(np.float32(0), codebook)[values]
    else:
        stands = gaps < of.reach  # for a value, and not for zeros alone
        ends = np.cumsum(gaps + stands)
        places = ends[stands] - 1
        flat = np.zeros(math.prod(shape), np.float32)
        if len(places) != len(values) or (len(ends) and ends[-1] > len(flat)):
            raise UserError("it is damaged: a tensor has other gaps than values")
        flat[places] = codebook[values]
    return np.ascontiguousarray(flat.reshape(shape).transpose(np.argsort(of.order)))
