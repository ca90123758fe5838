"""The command `flaxcnn benchmark`: how fast a run's network answers, here and in other formats."""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flaxcnn.commands.export import write_onnx, write_safetensors, write_stablehlo
from flaxcnn.errors import UserError
from flaxcnn.exit_status import DONE
from flaxcnn.export import measure
from flaxcnn.training.inference import TrainedRun, load_run
from flaxcnn.training.stages import find_run

_COLUMNS = ("", "file", "cold start", "images/s, 1", "images/s, 32", "memory")


def run(args: argparse.Namespace) -> int:
    """Prints one table. Raises UserError for what is no run."""
    if args.seconds <= 0:
        raise UserError(f"--seconds must be above 0, got {args.seconds}")
    trained_run = load_run(args.workdir)
    rows, missing = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for engine in measure.ENGINES:
            try:
                rows.append(_measure(engine, trained_run, Path(folder), args.seconds))
            except UserError as error:
                missing[engine] = str(error).removeprefix(f"{folder}/")
    if args.json:
        print(json.dumps({"rows": rows, "missing": missing}))
        return DONE
    shape = "x".join(map(str, trained_run.facts.image_shape))
    print(f"{args.workdir}: {trained_run.config.model.name}, {shape} images")
    print(format_table(rows))
    for reason in missing.values():
        print(f"not measured: {reason}")
    return DONE


def _measure(engine: str, trained_run: TrainedRun, folder: Path, seconds: float) -> dict[str, Any]:
    """A row: what `measure.py` measures in a process of its own, and the size of the file."""
    write, name = {
        "flaxcnn": (write_safetensors, "weights.safetensors"),
        "stablehlo": (write_stablehlo, "network.stablehlo"),
        "onnx": (write_onnx, "network.onnx"),
    }[engine]
    if engine == "onnx" and importlib.util.find_spec("onnxruntime") is None:
        raise UserError("onnxruntime is not installed: pip install 'flaxcnn[onnx]'")
    file = folder / name
    write(file, trained_run)
    source = find_run(trained_run.workdir.path) if engine == "flaxcnn" else file
    shape = ",".join(map(str, trained_run.facts.image_shape))
    program = [sys.executable, "-P", measure.__file__, engine, str(source), shape, str(seconds)]
    # What a first call takes, and not one that finds its program on disk.
    env = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    finished = subprocess.run(
        [*program, str(time.time())], env=env, capture_output=True, text=True, check=False
    )
    if finished.returncode:
        last = (finished.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{engine}: {last}")
    return {**json.loads(finished.stdout.splitlines()[-1]), "file": file.stat().st_size}


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [_COLUMNS, ["---"] * len(_COLUMNS)]
    for row in rows:
        rates = [f"{row[f'images_per_second_{batch}']:,.0f}" for batch in measure.BATCHES]
        file, memory = (f"{row[key] / 1e6:,.{digits}f} MB" for key, digits in _SIZES)
        lines.append((row["engine"], file, f"{row['cold_start']:.1f} s", *rates, memory))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


_SIZES = (("file", 2), ("memory", 0))
