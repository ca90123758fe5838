"""How fast a network answers, in a process of its own: `python -P measure.py ENGINE FILE ...`.

By its path and not as a module, so that the process has what the engine needs and nothing else.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

BATCHES = (1, 32)


def load_flaxcnn(file: str) -> tuple[Callable[[np.ndarray], Any], str]:
    """The folder of a run."""
    import jax

    import flaxcnn

    return flaxcnn.load(file), f"flaxcnn, jax {jax.__version__} on {jax.devices()[0].device_kind}"


def load_stablehlo(file: str) -> tuple[Callable[[np.ndarray], Any], str]:
    """What `export_stablehlo` wrote."""
    import jax
    import jax.export

    network = jax.jit(jax.export.deserialize(bytearray(Path(file).read_bytes())).call)
    name = f"jax {jax.__version__} on {jax.devices()[0].device_kind}"
    return lambda images: jax.device_get(network(images)), name


def load_onnx(file: str) -> tuple[Callable[[np.ndarray], Any], str]:
    """What `export_onnx` wrote, on the CPU."""
    import onnxruntime  # pyright: ignore[reportMissingImports] (an extra)

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    name = f"onnxruntime {onnxruntime.__version__} on cpu"
    return lambda images: session.run(None, {"images": images}), name


ENGINES = {"flaxcnn": load_flaxcnn, "stablehlo": load_stablehlo, "onnx": load_onnx}


def measure(
    engine: str, file: str, image_shape: tuple[int, ...], seconds: float, started: float
) -> dict[str, Any]:
    """Images per second at each batch, by the median call; megabytes at most; seconds to begin.

    `started` is when the process was, by `time.time()`.
    """
    answer, name = ENGINES[engine](file)
    answer(np.zeros((1, *image_shape), np.uint8))
    result: dict[str, Any] = {"engine": name, "cold_start": time.time() - started}
    rng = np.random.default_rng(0)
    for batch in BATCHES:
        images = rng.integers(0, 256, (batch, *image_shape)).astype(np.uint8)
        answer(images)
        times, end = [], time.perf_counter() + seconds
        while not times or time.perf_counter() < end:
            before = time.perf_counter()
            answer(images)
            times.append(time.perf_counter() - before)
        result[f"images_per_second_{batch}"] = batch / float(np.median(times))
    return result | {"memory": peak_memory()}


def peak_memory() -> int:
    """The most bytes that this process has had in memory; of the kernel, else of `getrusage`."""
    try:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    except (OSError, IndexError):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    engine, file, shape, seconds, started = sys.argv[1:]
    sides = tuple(map(int, shape.split(",")))
    print(json.dumps(measure(engine, file, sides, float(seconds), float(started))))
