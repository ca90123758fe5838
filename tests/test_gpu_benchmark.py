"""`benchmarks/train_step.py --device gpu`, with sides that only pretend to be on a GPU."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    other = sys.modules.pop("networks", None)  # of tests/reference
    import gpu

    sys.modules.pop("networks", None)
    if other is not None:
        sys.modules["networks"] = other
    monkeypatch.setattr(gpu, "RESERVED", 0.0)
    return gpu


class StandIn:
    """A side of which a step takes `seconds`."""

    def __init__(self, seconds: float, macs: int | None):
        self.seconds, self.closed = seconds, False
        self.known = {"unit": 1, "compile_seconds": 30.4}
        self.known |= {} if macs is None else {"train_macs": macs}

    def run(self, steps: int) -> float:
        return self.seconds

    def close(self) -> None:
        self.closed = True


def test_a_table_of_what_was_ready_in_time(gpu):
    sides = {
        "flaxcnn": StandIn(0.1, 12 * 10**9),
        "flaxcnn deterministic": StandIn(0.125, 12 * 10**9),
        "torch compile": StandIn(0.08, None),
    }

    def start(side, model, batch, limit):
        assert (model, batch) == ("resnet50", 256) and 0 < limit <= 60
        if side not in sides:
            raise TimeoutError("not ready within 60 s")
        return sides[side]

    found = gpu.measure_network("resnet50", 256, 60, start)
    assert all(side.closed for side in sides.values())
    late = gpu.measure_network("vgg16", 128, 0, start)  # nothing starts
    assert set(late["skipped"]) == {*sides, "torch channels_last"}
    machine = {
        "date": "2026-11-26",
        "device": "NVIDIA X",
        "driver": "1.2",
        "python": "3.11",
        "versions": {"jax": "0.10.1", "torch": "2.13.0"},
    }
    ran = {"accuracy": 0.9414, "without_views": 0.934, "training_seconds": 7.04}
    cifar = {"as it is": ran | {"whole_seconds": 41.26}, "deterministic": "skipped: late"}
    text = gpu.format_document(
        machine, {"networks": {"resnet50": found, "vgg16": late}, "cifar": cifar}
    )
    # 256 images in 0.1 s are 2,560/s; 2 x 12e9 FLOPs each are 61 TFLOP/s.
    row = "| resnet50 | 256 | 2560 | 0.80 | - | 0.80 | 61 | 3200 | - | 30, 30, 30 |"
    assert row in text.splitlines()
    assert "| vgg16 | 128 | - | - | - | - | - | - | - | -, -, - |" in text.splitlines()
    assert "- resnet50, torch channels_last: not ready within 60 s" in text.splitlines()
    assert "2026-11-26; NVIDIA X, driver 1.2; Python 3.11, jax 0.10.1, torch 2.13.0." in text
    assert "| as it is | 94.14% | 93.40% | 7.0 | 41.3 |" in text.splitlines()
    assert "| deterministic | skipped: late | - | - | - |" in text.splitlines()
    widths = {
        line.count("|") for line in text.splitlines() if re.match(r"\| (network|resnet)", line)
    }
    assert widths == {11}


def test_the_document_is_the_benchmark_s(gpu):
    written = gpu.DOCUMENT.read_text()
    assert written.startswith(gpu.format_document({}, {}).split("Not measured yet")[0])


def test_without_a_gpu_it_says_so_in_one_line():
    command = [sys.executable, "train_step.py", "--device", "gpu", "--output", "/nowhere/gpu.md"]
    asked = subprocess.run(command, cwd=BENCHMARKS, capture_output=True, text=True)
    if asked.returncode == 1 and "/nowhere" in asked.stderr:
        pytest.skip("there is a GPU")
    assert (asked.returncode, asked.stdout) == (2, "")
    assert asked.stderr == "no GPU: JAX finds none here, so nothing is measured\n"
