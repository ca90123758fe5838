"""Codes are as short as can be, canonical, and what is written is read."""

import heapq
import itertools

import numpy as np
import pytest

from flaxcnn.compression.huffman import find_lengths, make_codes, write_bits
from flaxcnn.weights.formats import fcz


def least_bits(counts) -> int:
    """What Huffman's own algorithm gives: the sum of all merged weights."""
    heap = [count for count in counts if count]
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        total += merged
        heapq.heappush(heap, merged)
    return total


@pytest.mark.parametrize("seed", range(4))
def test_codes_are_optimal(seed):
    counts = np.random.default_rng(seed).geometric(0.01, 60) * (np.arange(60) % 7 > 0)
    lengths = find_lengths(counts, limit=20)
    assert (lengths > 0).tolist() == (counts > 0).tolist()
    assert (counts * lengths).sum() == least_bits(counts.tolist())
    assert sum(0.5 ** lengths[lengths > 0]) == 1


def test_limited_codes_are_the_best_of_that_length():
    """All codes of 5 symbols in at most 3 bits, by Kraft's inequality."""
    counts = np.array([100, 40, 10, 2, 1])
    complete = (
        lengths
        for lengths in itertools.product((1, 2, 3), repeat=5)
        if sum(0.5**n for n in lengths) <= 1
    )
    best = min(sum(counts * lengths) for lengths in complete)
    lengths = find_lengths(counts, limit=3)
    assert lengths.max() == 3 and (counts * lengths).sum() == best > least_bits(counts.tolist())


def test_codes_are_canonical():
    """The example of RFC 1951, section 3.2.2."""
    codes = make_codes(np.array([3, 3, 3, 3, 3, 2, 4, 4]))
    assert codes.tolist() == [0b010, 0b011, 0b100, 0b101, 0b110, 0b00, 0b1110, 0b1111]


def test_bits_are_written_highest_first():
    lengths = np.array([3, 3, 3, 3, 3, 2, 4, 4])
    symbols = np.array([6, 0, 5, 7, 2])
    data = write_bits(make_codes(lengths)[symbols], lengths[symbols])
    text = "1110" + "010" + "00" + "1111" + "100"
    assert data == int(text, 2).to_bytes(2, "big")
    assert write_bits(np.zeros(0, np.int64), np.zeros(0, np.uint8)) == b""


@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_streams_are_decoded_side_by_side(chunk):
    """Sequences of other alphabets and lengths, one of a symbol alone."""
    rng = np.random.default_rng(chunk)
    sequences = [rng.geometric(0.3, 1000).clip(max=20), rng.integers(0, 3, 40), np.full(9, 1)]
    alphabets = (21, 3, 2)
    coded = {
        str(i): fcz.Coded((1000,), (0,), n - 1, 0, (len(symbols), 0))
        for i, (n, symbols) in enumerate(zip(alphabets, sequences, strict=True))
    }
    header = fcz.Header({}, {}, coded, chunk, ())
    lengths = [
        find_lengths(np.bincount(symbols, minlength=n))
        for n, symbols in zip(alphabets, sequences, strict=True)
    ]
    bits = [of[symbols] for of, symbols in zip(lengths, sequences, strict=True)]
    codes = [make_codes(of)[s] for of, s in zip(lengths, sequences, strict=True)]
    data = write_bits(np.concatenate(codes), np.concatenate(bits))
    streams = [int(of[i : i + chunk].sum()) for of in bits for i in range(0, len(of), chunk)]
    decoded = fcz.decode(memoryview(data), header, np.concatenate(lengths), np.array(streams))
    for found, expected in zip(decoded, sequences, strict=True):
        np.testing.assert_array_equal(found, expected)
