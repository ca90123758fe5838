"""Huffman codes of limited length, and symbols as a stream of bits."""

import numpy as np

from flaxcnn.weights.formats.fcz import MAX_CODE

Array = np.ndarray


def find_lengths(counts: Array, limit: int = MAX_CODE) -> Array:
    """Bits of each symbol's code, 0 where it has none: the least sum of counts x bits.

    By coins of value 2^-1 to 2^-limit (Larmore and Hirschberg 1990, package-merge). A symbol that
    is alone has a code of 1 bit. Counts of 0 have no code.
    """
    used = np.flatnonzero(counts)
    lengths = np.zeros(len(counts), np.uint8)
    if len(used) <= 1:
        lengths[used] = 1
        return lengths
    assert len(used) <= 2**limit
    leaves = sorted((int(counts[symbol]), (int(symbol),)) for symbol in used)
    coins: list[tuple[int, tuple[int, ...]]] = []
    for _ in range(limit):
        packages = [
            (a[0] + b[0], a[1] + b[1]) for a, b in zip(coins[::2], coins[1::2], strict=False)
        ]
        coins = sorted(leaves + packages)
    for _, symbols in coins[: 2 * len(used) - 2]:
        np.add.at(lengths, list(symbols), 1)
    return lengths


def make_codes(lengths: Array) -> Array:
    """The canonical code of each symbol: by length, then by number, counting up."""
    width = int(lengths.max(initial=0))
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] > 0]
    spans = 1 << (width - lengths[order].astype(np.int64))
    codes = np.zeros(len(lengths), np.int64)
    codes[order] = (np.cumsum(spans) - spans) >> (width - lengths[order].astype(np.int64))
    return codes


def write_bits(codes: Array, lengths: Array) -> bytes:
    """Codes one after another, the highest bit first; zeros fill the last byte."""
    ends = np.cumsum(lengths.astype(np.int64))
    bits = np.zeros(int(ends[-1]) if len(ends) else 0, np.uint8)
    for bit in range(int(lengths.max(initial=0))):
        chosen = np.flatnonzero(lengths > bit)
        bits[ends[chosen] - 1 - bit] = (codes[chosen] >> bit) & 1
    return np.packbits(bits).tobytes()
