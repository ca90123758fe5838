import numpy as np
import pytest

from flaxcnn.data.permutation import permutation


@pytest.mark.parametrize("count", [0, 1, 2, 1437])
def test_holds_every_number_once(count):
    np.testing.assert_array_equal(np.sort(permutation(count, 0, purpose=1)), np.arange(count))


def test_every_argument_counts():
    orders = [
        permutation(50, 0, purpose=1),
        permutation(50, 1, purpose=1),
        permutation(50, -1, purpose=1),
        permutation(50, 0, purpose=2),
        permutation(50, 0, purpose=1, index=1),
    ]
    assert len({order.tobytes() for order in orders}) == len(orders)


def test_order_is_fixed_for_ever():
    # A change here changes the result of every run: these are the ranks of Philox 4x64-10's output
    # for key (7, 3) from counter (0, 0, 0, 1), written out below from the paper (Salmon 2011).
    mask = 2**64 - 1

    def philox(counter, key):
        c, k = list(counter), list(key)
        for _ in range(10):
            a, b = c[0] * 0xD2E7470EE14C6C93, c[2] * 0xCA5A826395121157
            c = [(b >> 64) ^ c[1] ^ k[0], b & mask, (a >> 64) ^ c[3] ^ k[1], a & mask]
            k = [(k[0] + 0x9E3779B97F4A7C15) & mask, (k[1] + 0xBB67AE8584CAA73B) & mask]
        return c

    # NumPy advances the counter before it draws.
    bits = [x for block in range(1, 6) for x in philox((block, 0, 0, 1), (7, 3))]
    expected = sorted(range(20), key=bits.__getitem__)
    assert permutation(20, 7, purpose=1, index=3).tolist() == expected


def test_positions_are_uniform():
    # Over 400 seeds each of 6 elements comes first 67 times, give or take 7.5 (one deviation).
    first = [permutation(6, seed, purpose=1)[0] for seed in range(400)]
    assert np.abs(np.bincount(first, minlength=6) - 400 / 6).max() < 4 * 7.5
