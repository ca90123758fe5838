"""Deep Compression of LeNets, ResNet-20 and SqueezeNet: bytes and accuracy by seed.

    export TFDS_DATA_DIR=../shared/data/tfds
    taskset -c 1 python benchmarks/deep_compression.py run lenet300 0 --work runs/compression
    python benchmarks/deep_compression.py report --work runs/compression

`run` trains what is missing of one case and seed, and resumes; `report` gathers what there is into
docs/studies/deep_compression.json and .md.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from matplotlib.figure import Figure

from flaxcnn.commands.compress import describe_run, describe_weights
from flaxcnn.commands.compress_stages import Plan, compress
from flaxcnn.compression.encode import encode
from flaxcnn.compression.table import Row, format_table, make_table
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
WEIGHTS = (ROOT.parent / "shared/data/weights").absolute()


CIFAR = "airplane automobile bird cat deer dog frog horse ship truck".split()


@dataclasses.dataclass(frozen=True)
class Case:
    """A network as it is trained first, and what is done to it."""

    config: Config
    plan: Plan
    published: bool = False  # its `model.weights` are the trained ones
    accuracy: float = 0.0  # of those, where it is known


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
        _mnist("lenet_caffe", 4, 0.02, 5e-4),
        Plan((0.93,), bits=6, retrain=5, rate=0.02),
    ),
    "resnet20": Case(
        Config(
            model=ModelConfig(
                name="cifar_resnet20", weights=f"file:{WEIGHTS}/cifar10_resnet20.safetensors"
            ),
            data=DataConfig(
                source="tfds:cifar10",
                batch_size=128,
                validation=0.01,
                normalization="weights",
                augment=(("crop", 4, 0.47), ("flip",)),
            ),
            optimizer=OptimizerConfig(name="nesterov", weight_decay=1e-4),
        ),
        Plan((0.54,), bits=5, retrain=2, rate=0.01),
        published=True,
        accuracy=0.9173,  # tests/weights/test_real_resnet20.py
    ),
    "squeezenet": Case(
        Config(
            model=ModelConfig(
                name="squeezenet1_0_caffe",
                weights=f"file:{WEIGHTS}/squeezenet_v1.0_deepcompression.safetensors.xz",
            )
        ),
        Plan(bits=8),
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
    encoded = encode(after, describing)
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "out.fcz").write_bytes(encoded.data)
    decoded, seconds = _time_decoding(folder / "out.fcz")
    table = make_table(before, after, encoded)
    return {
        "case": name,
        "seed": seed,
        "plan": dataclasses.asdict(case.plan),
        "float32": table[-1].float32,
        "bytes": len(encoded.data),
        **_compare(folder, before, decoded, case.accuracy),
        "decoding_mb_per_s": sum(x.nbytes for x in decoded.values()) / seconds / 1e6,
        "cpu_seconds": round(time.process_time() - started),
        "table": [row._asdict() for row in table],
    }


def _nest(flat: dict[str, np.ndarray]) -> dict[str, Any]:
    nested = traverse_util.unflatten_dict(flat, sep="/")
    return {"params": nested["params"], "batch_stats": nested.get("batch_stats", {})}


def _compare(
    folder: Path, before: Any, decoded: dict[str, np.ndarray], known: float
) -> dict[str, Any]:
    """Test accuracies; where nothing was trained, whether the bits are the same."""
    runs = sorted(folder.glob("pruned*")) + sorted(folder.glob("shared/"))
    if not runs:
        flat = traverse_util.flatten_dict(before, sep="/")
        return {"same_bits": all(np.array_equal(flat[name], decoded[name]) for name in flat)}
    run = load_run(runs[-1], "last")
    accuracies = known or _measure(run, before), _measure(run, _nest(decoded))
    return dict(zip(("accuracy", "compressed_accuracy"), accuracies, strict=True))


def _measure(run: TrainedRun, variables: Any) -> float:
    variables = {"batch_stats": {}, **variables}
    measured = dataclasses.replace(run, variables=variables).evaluate("test")
    return measured.figures["accuracy"]


def _time_decoding(file: Path) -> tuple[dict[str, np.ndarray], float]:
    times, tensors = [], {}
    for _ in range(7):
        started = time.process_time()
        tensors = read_tensors(file)
        times.append(time.process_time() - started)
    return tensors, float(np.median(times))


# Bytes in the papers: Han 2016, tables 1 to 3; Iandola 2016, table 2 (8 bits).
PAPER = {
    "lenet300": {
        "fc1/kernel": 21_827,
        "fc2/kernel": 3_648,
        "classifier/kernel": 508,
        "whole file": 27_000,
    },
    "lenet5": {
        "conv1/kernel": 1_349,
        "conv2/kernel": 5_280,
        "fc1/kernel": 39_200,
        "classifier/kernel": 1_226,
        "whole file": 44_000,
    },
    "resnet20": {},
    "squeezenet": {"whole file": 660_000},
}
TITLES = {
    "lenet300": "LeNet-300-100, MNIST",
    "lenet5": "LeNet-5 (Caffe), MNIST",
    "resnet20": "ResNet-20, CIFAR-10",
    "squeezenet": "SqueezeNet 1.0, ImageNet",
}


TEXT = """# Deep Compression

What `flaxcnn compress` makes of four networks ([compression.md](../compression.md)). Each is
trained, pruned in rounds, retrained under the mask, shared, and written to one file, whose size is
that of the whole file: header, checksum, codes and their tables, codebooks, biases and
normalisation. Accuracies are those of the test set, before, and of what the file decodes to, both
of the last step. One thread of an AMD EPYC (AVX-512); Python 3.11, jaxlib 0.10.1. Made by
`benchmarks/deep_compression.py`.

SqueezeNet comes pruned and shared (8 bits; the authors' release), so that nothing is lost: all bits
come back, and the answers on 48 photographs are the same to the last digit. ResNet-20 has published
weights; its retraining sees all images twice. The papers' sizes are of Han 2016
(tables 1 to 3), which counts codebooks and indices, and of Iandola 2016 (table 2).
Decoding is of float32 bytes, with reading and checksum, per CPU-second.

In the tables: `xz of float32` and `int8 + xz` (nearest of 255 even steps, by layer) are of the
network as it was trained; `pruned` is 32 bits for each weight that is left and the zeros before it
in the bits that take least; `shared` is numbers in the codebook instead, and the codebook; `in the
file` is what there is of the layer in the file.
"""


def write_report(results: list[dict[str, Any]]) -> str:
    """The summary, and a table of bytes for each case, of its first seed."""
    lines = [TEXT]
    head = ["network", "seed", "float32", "file", "smaller", "accuracy", "compressed", "paper"]
    head += ["decoded, MB/s"]
    lines += [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
    for case, title in TITLES.items():
        found = [result for result in results if result["case"] == case]
        for result in found:
            lines.append(_summarize(title, str(result["seed"]), [result], PAPER[case]))
        if len(found) > 1:
            lines.append(_summarize(title, "mean", found, PAPER[case]))
    lines += ["", "![Bytes by stage](deep_compression.png)"]
    for case, title in TITLES.items():
        for result in [result for result in results if result["case"] == case][:1]:
            rows = [Row(**row) for row in result["table"]]
            lines += ["", f"## {title}, seed {result['seed']}", "", f"`{result['plan']}`", ""]
            lines += [format_table(rows, PAPER[case])]
    return "\n".join(lines) + "\n"


def _summarize(title: str, seed: str, results: list[dict[str, Any]], paper: dict[str, int]) -> str:
    size = float(np.mean([result["bytes"] for result in results]))
    cells = [title, seed, f"{results[0]['float32']:,}", f"{size:,.0f}"]
    cells += [f"{results[0]['float32'] / size:.1f}x"]
    for name in ("accuracy", "compressed_accuracy"):
        known = [result[name] for result in results if name in result]
        cells.append(f"{100 * np.mean(known):.2f} %" if known else "the same bits")
    cells.append(f"{paper['whole file']:,}" if paper else "")
    cells.append(f"{np.mean([result['decoding_mb_per_s'] for result in results]):.0f}")
    return f"| {' | '.join(cells)} |"


def draw(results: list[dict[str, Any]]) -> Figure:
    """Bytes of each network by stage, of its first seed."""
    first = [next((r for r in results if r["case"] == case), None) for case in TITLES]
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    stages = ("float32", "xz", "int8_xz", "pruned", "shared", "coded")
    names = ("float32", "xz of float32", "int8 + xz", "pruned", "shared", "the file")
    for place, (stage, name) in enumerate(zip(stages, names, strict=True)):
        sizes = [result["table"][-1][stage] / 1000 if result else 0 for result in first]
        bars = axes.bar(np.arange(len(sizes)) + 0.14 * place - 0.35, sizes, 0.13, label=name)
        axes.bar_label(bars, fmt="{:,.0f}", fontsize=6)
    axes.set_xticks(range(len(TITLES)), list(TITLES.values()))
    axes.set_yscale("log")
    axes.set_ylabel("kilobytes")
    axes.legend(ncols=3, fontsize=8)
    return figure


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
    folder = ROOT / "docs/studies"
    (folder / "deep_compression.json").write_text(json.dumps(results) + "\n")
    (folder / "deep_compression.md").write_text(write_report(results))
    draw(results).savefig(folder / "deep_compression.png", dpi=100)


if __name__ == "__main__":
    main()
