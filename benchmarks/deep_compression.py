"""Deep Compression of LeNet-300-100, LeNet-5 (Caffe) and ResNet-20: bytes and accuracy by seed.

    export TFDS_DATA_DIR=../shared/data/tfds
    taskset -c 1 python benchmarks/deep_compression.py run lenet300 0 --work runs/compression
    python benchmarks/deep_compression.py report --work runs/compression

`run` trains what is missing of one case and seed, and resumes; `report` gathers what there is into
docs/studies/deep_compression.json.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flaxcnn.commands.compress import describe_run, describe_weights
from flaxcnn.commands.compress_stages import Plan, compress
from flaxcnn.compression.encode import encode
from flaxcnn.compression.table import make_table
from flaxcnn.training import (
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    train,
)
from flaxcnn.training.inference import TrainedRun, load_run
from flaxcnn.weights.formats import read_tensors
from flaxcnn.weights.pretrained import load_variables

ROOT = Path(__file__).parents[1]
WEIGHTS = (ROOT.parent / "shared/data/weights/cifar10_resnet20.safetensors").absolute()


@dataclasses.dataclass(frozen=True)
class Case:
    """A network as it is trained first, and what is done to it."""

    config: Config
    plan: Plan
    published: bool = False  # its `model.weights` are the trained ones


def _mnist(name: str, epochs: int, rate: float, decay: float, **kwargs: Any) -> Config:
    return Config(
        model=ModelConfig(name=name, kwargs=kwargs),  # pyright: ignore[reportArgumentType]
        data=DataConfig(source="tfds:mnist", batch_size=128, validation=0.05),
        optimizer=OptimizerConfig(
            name="nesterov",
            learning_rate=rate,
            weight_decay=decay,
            schedule=ScheduleConfig("cosine"),
        ),
        epochs=epochs,
    )


CASES = {
    "lenet300": Case(
        _mnist("mnist_mlp_512", 12, 0.1, 5e-4, hidden=(300, 100)),
        Plan((0.8, 0.92), bits=5, retrain=10, finetune=2, rate=0.05),
    ),
    "lenet5": Case(
        _mnist("lenet_caffe", 6, 0.02, 5e-4),
        Plan((0.9, 0.965, 0.982), bits=5, retrain=3, finetune=1, rate=0.01),
    ),
    "resnet20": Case(
        Config(
            model=ModelConfig(name="cifar_resnet20", weights=f"file:{WEIGHTS}"),
            data=DataConfig(
                source="tfds:cifar10",
                batch_size=128,
                validation=0.02,
                normalization="weights",
                augment=(("crop", 4, 0.47), ("flip",)),
            ),
            optimizer=OptimizerConfig(name="nesterov", weight_decay=1e-4),
        ),
        Plan((0.65,), bits=5, retrain=2, rate=0.01),
        published=True,
    ),
}


def run_case(name: str, seed: int, work: Path) -> dict[str, Any]:
    """Bytes and accuracies of one case and seed."""
    case, folder = CASES[name], work / f"{name}-{seed}"
    config = dataclasses.replace(case.config, seed=seed)
    started = time.process_time()
    if case.published:
        before, located = load_variables(config.model.weights, config.model.name)
        describing = describe_weights(located)
    else:
        train(config, folder / "dense")
        dense = load_run(folder / "dense", "last")
        before, describing = jax.device_get(dict(dense.variables)), describe_run(dense)
        weights = f"run:{folder / 'dense'},checkpoint=last"
        config = dataclasses.replace(
            config, model=dataclasses.replace(config.model, weights=weights)
        )
    after = compress(before, case.plan, config, folder, describing)
    last = sorted(folder.glob("pruned*")) + sorted(folder.glob("shared/"))
    run = load_run(last[-1], "last")
    encoded = encode(after, describing)
    (folder / "out.fcz").write_bytes(encoded.data)
    decoded, seconds = _time_decoding(folder / "out.fcz")
    table = make_table(before, after, encoded)
    return {
        "case": name,
        "seed": seed,
        "plan": dataclasses.asdict(case.plan),
        "float32": table[-1].float32,
        "bytes": len(encoded.data),
        "accuracy": _measure(run, before),
        "compressed_accuracy": _measure(run, _nest(decoded)),
        "decoding_mb_per_s": sum(x.nbytes for x in decoded.values()) / seconds / 1e6,
        "cpu_seconds": round(time.process_time() - started),
        "table": [row._asdict() for row in table],
    }


def _nest(flat: dict[str, np.ndarray]) -> dict[str, Any]:
    from flax import traverse_util

    nested = traverse_util.unflatten_dict(flat, sep="/")
    return {"params": nested["params"], "batch_stats": nested.get("batch_stats", {})}


def _measure(run: TrainedRun, variables: Any) -> float:
    variables = {"batch_stats": {}, **variables}
    measured = dataclasses.replace(run, variables=variables).evaluate("test")
    return measured.figures["accuracy"]


def _time_decoding(file: Path) -> tuple[dict[str, np.ndarray], float]:
    times, tensors = [], {}
    for _ in range(7):
        started = time.perf_counter()
        tensors = read_tensors(file)
        times.append(time.perf_counter() - started)
    return tensors, float(np.median(times))


def main() -> None:
    """Runs a case, or writes the report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("action", choices=("run", "report"))
    parser.add_argument("case", nargs="?", choices=CASES)
    parser.add_argument("seed", nargs="?", type=int, default=0)
    parser.add_argument("--work", type=Path, required=True)
    args = parser.parse_args()
    if args.action == "run":
        result = run_case(args.case, args.seed, args.work.absolute())
        text = json.dumps(result, indent=1)
        (args.work / f"{args.case}-{args.seed}.json").write_text(text + "\n")
        print({key: value for key, value in result.items() if key != "table"})
        return
    results = [json.loads(file.read_text()) for file in sorted(args.work.glob("*.json"))]
    (ROOT / "docs/studies/deep_compression.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
