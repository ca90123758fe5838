"""How far apart arrays are, in units of the last place."""

import dataclasses

import jax.numpy as jnp
import numpy as np

NOT_A_NUMBER = 2**64 - 1  # the distance of a NaN to any number


@dataclasses.dataclass(frozen=True)
class Difference:
    """Two arrays of the same name that are not the same, value by value.

    Distances are in the coarser of the two types. `relative` is the largest absolute difference as
    a share of the largest magnitude of the first array. `note` says why there are no numbers.
    """

    name: str
    values: int = 0  # of the array
    differing: int = 0  # of these, by their bits
    max_ulps: int = 0  # 0 where only the sign of a zero differs
    where: tuple[int, ...] = ()  # the index of the largest distance
    pair: tuple[float, float] = (0.0, 0.0)  # the values there
    relative: float = 0.0
    note: str = ""


def ulp_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How many floats of their type lie between `a` and `b`, uint64; 0 where they are equal.

    Floats (two, four or eight bytes, or bfloat16) of one type, broadcast; adjacent ones have
    distance 1, +0 and -0 distance 0, NaNs distance 0 to each other and 2**64 - 1 to any number. As
    their bits, read as integers, are in the order of their values (IEEE 754, 2019, section 3.4),
    distances are the integers' differences.
    """
    if a.dtype != b.dtype or not jnp.issubdtype(a.dtype, jnp.floating):
        raise TypeError(f"ulp_distance needs floats of one type, got {a.dtype} and {b.dtype}")

    def order(x: np.ndarray) -> np.ndarray:
        bits = np.ascontiguousarray(x).view(f"i{x.itemsize}").reshape(x.shape).astype(np.int64)
        lowest = np.int64(-(2 ** (8 * x.itemsize - 1)))  # the bits of -0
        return np.where(bits < 0, lowest - bits, bits)

    first, second = np.broadcast_arrays(order(a), order(b))
    larger, smaller = np.maximum(first, second), np.minimum(first, second)
    distance = larger.astype(np.uint64) - smaller.astype(np.uint64)  # modulo 2**64
    nan_a, nan_b = np.broadcast_arrays(np.isnan(a), np.isnan(b))
    distance = np.where(nan_a & nan_b, np.uint64(0), distance)
    return np.where(nan_a ^ nan_b, np.uint64(NOT_A_NUMBER), distance)


def compare(name: str, a: np.ndarray, b: np.ndarray) -> Difference | None:
    """How `b` differs from `a`; None if each value has the same bits in the coarser type.

    Where one has fewer examples (the first axis alone is shorter) the others are left out.
    """
    if a.shape != b.shape and a.shape[1:] == b.shape[1:] and a.ndim:
        a, b = a[: len(b)], b[: len(a)]
    if a.shape != b.shape:
        return Difference(name, note=f"shape {a.shape} and {b.shape}")
    floats = [jnp.issubdtype(x.dtype, jnp.floating) for x in (a, b)]
    if not all(floats):
        a, b = a.astype(np.float64), b.astype(np.float64)
    elif a.dtype != b.dtype:
        coarser = max(a.dtype, b.dtype, key=lambda dtype: float(jnp.finfo(dtype).eps))
        a, b = a.astype(coarser), b.astype(coarser)
    bits = f"u{a.itemsize}"
    differing = np.ascontiguousarray(a).view(bits) != np.ascontiguousarray(b).view(bits)
    if not differing.any():
        return None
    ulps = ulp_distance(a, b)
    where = tuple(int(i) for i in np.unravel_index(np.argmax(ulps), ulps.shape))
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore"):
        largest, apart = np.max(np.abs(a64)), np.max(np.abs(a64 - b64))
    return Difference(
        name,
        values=a.size,
        differing=int(np.count_nonzero(differing)),
        max_ulps=int(ulps[where]),
        where=where,
        pair=(float(a64[where]), float(b64[where])),
        relative=float(apart / largest) if largest else float(np.inf),
    )
