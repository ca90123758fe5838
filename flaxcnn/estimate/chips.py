"""What a chip can do at most: the rates and the memory that `flaxcnn estimate` reckons with."""

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

from flaxcnn.errors import UserError
from flaxcnn.training.environment import count_threads, machine_type

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One device as JAX counts them. Rates are the maker's peaks, which no network reaches.

    `flops` is FLOP/s of convolutions and matrix products by the config's `precision`, at JAX's
    default matmul precision; `bandwidth` bytes/s of the device's memory; `memory` the bytes of it
    that XLA gives a program. `kind` is a part of JAX's `device_kind`. `topology` is how libtpu
    knows a single chip.
    """

    name: str
    title: str
    platform: str  # "tpu", "gpu" or "cpu"
    kind: str
    flops: Mapping[str, float]
    bandwidth: float
    memory: float
    source: str
    topology: Mapping[str, Any] | None = None


def _tpu(
    name: str, kind: str, tflops: float, bandwidth: float, memory: float, **topology: Any
) -> Chip:
    # By default a TPU multiplies float32 with its factors rounded to bfloat16: the same rate.
    rates = {"bfloat16": tflops * 1e12, "float32": tflops * 1e12}
    page = f"docs.cloud.google.com/tpu/docs/{name}, seen 2026-11-26"
    return Chip(name, f"TPU {name}", "tpu", kind, rates, bandwidth, memory * GIB, page, topology)


# JAX takes 75 % of a GPU's memory unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
_SHARE = 0.75

# Memory of v5e and v6e is what libtpu 0.0.41 says of a program that is too large ("of 15.75G hbm").
CHIPS = {
    chip.name: chip
    for chip in (
        _tpu(
            "v5e",
            "TPU v5 lite",
            197,
            819e9,
            15.75,
            topology_name="v5e:1x1",
            chips_per_host_bounds=(1, 1, 1),
        ),
        _tpu(
            "v6e",
            "TPU v6 lite",
            918,
            1638e9,
            31.25,
            topology_name="v6e:1x1",
            chips_per_host_bounds=(1, 1, 1),
        ),
        _tpu(
            "v4",
            "TPU v4",
            275,
            1200e9,
            32,
            topology_name="v4:1x1x1",
            chips_per_host_bounds=(1, 1, 1),
            chip_config_name="megacore",
        ),
        Chip(
            "h100",
            "NVIDIA H100 SXM, 80 GB",
            "gpu",
            "H100",
            # Dense; float32 as TF32, JAX's default.
            {"bfloat16": 989e12, "float16": 989e12, "float32": 494e12},
            3350e9,
            80e9 * _SHARE,
            "NVIDIA H100 datasheet (SXM; half of what it gives with sparsity), seen 2026-11-26",
        ),
        Chip(
            "a100",
            "NVIDIA A100 SXM, 40 GB",
            "gpu",
            "A100",
            {"bfloat16": 312e12, "float16": 312e12, "float32": 156e12},  # float32 as TF32
            1555e9,
            40e9 * _SHARE,
            "NVIDIA A100 datasheet (SXM, 40 GB), seen 2026-11-26",
        ),
        Chip(
            "t4",
            "NVIDIA T4, 16 GB",
            "gpu",
            "T4",
            {"float16": 65e12, "bfloat16": 8.1e12, "float32": 8.1e12},  # no bfloat16 units
            320e9,
            16e9 * _SHARE,
            "NVIDIA T4 datasheet, seen 2026-11-26",
        ),
    )
}
NAMES = (*CHIPS, "cpu")


def find_chip(name: str) -> Chip:
    """The chip of that name. Raises UserError if the table has none."""
    if name == "cpu":
        return _make_cpu()
    if name not in CHIPS:
        raise UserError(f"--chip must be one of {', '.join(NAMES)}, got {name!r}")
    return CHIPS[name]


def present_chip() -> Chip:
    """The device that JAX computes on here, with the memory it has; without rates if not known."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        return _make_cpu()
    kind, stats = device.device_kind, device.memory_stats() or {}
    known = next((chip for chip in CHIPS.values() if chip.kind in kind), None)
    chip = known or Chip(kind, kind, device.platform, kind, {}, 0.0, 0.0, "")
    memory = stats.get("bytes_limit", chip.memory)
    if not memory:
        raise UserError(f"how much memory this device ({kind}) has is not known: name a --chip")
    return dataclasses.replace(chip, memory=memory)


def _make_cpu() -> Chip:
    """This machine's processor, by its threads and vectors alone: rough.

    A thread is taken to have a core of 3.1 GHz with two multiply-adds of whole vectors a cycle, of
    16 floats with AVX-512, else 8, and 20 GB/s.
    """
    threads, floats = count_threads(), 16 if "avx512" in machine_type() else 8
    rate = threads * 3.1e9 * 2 * 2 * floats
    return Chip(
        "cpu",
        f"a CPU with {threads} threads",
        "cpu",
        "cpu",
        {"bfloat16": rate, "float32": rate},
        20e9 * threads,
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "nominal, for any processor with these vectors, 2026-11-26",
    )
