"""Memory and traffic of training steps on a TPU, compiled ahead of time on a machine without one.

    pip install -e '.[tpu]'
    JAX_PLATFORMS=cpu python benchmarks/tpu_table.py

One network at a time, each in a process of its own with a time limit. What is done is kept in
`tpu_table.json`: the same command goes on where it was stopped. Then `docs/tpu.md` is written; with
`--write` that is all.
"""

import argparse
import datetime
import importlib.metadata
import json
import platform
from dataclasses import asdict
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from flaxcnn.estimate.chips import GIB, find_chip
from flaxcnn.estimate.step_cost import Step
from flaxcnn.estimate.step_model import reckon_step
from flaxcnn.estimate.tpu_compile import compile_for_tpu
from flaxcnn.estimate.unread import make_unread
from flaxcnn.models._registry import variant
from flaxcnn.training import Config, DataConfig, ModelConfig, OptimizerConfig
from flaxcnn.training.experiment import Experiment

RESULTS = Path(__file__).with_suffix(".json")
PAGE = Path(__file__).parents[1] / "docs" / "tpu.md"
BATCH = 128
ROWS = (  # network, what is not as in the other rows; the quick ones first
    ("mnist_cnn_220k", {}),
    ("cifar_resnet20", {}),
    ("airbench94", {}),
    ("squeezenet1_1", {}),
    ("resnet50", {}),
    ("resnet50", {"precision": "float32"}),
    ("resnet50", {"remat": True}),
    ("resnet50", {"accumulate": 4}),
    ("mobilenet_v2", {}),
    ("vgg16", {}),
    ("densenet121", {}),
)


def make_experiment(name: str, *, precision="bfloat16", remat=False, accumulate=1) -> Experiment:
    """SGD with momentum on streamed images of the network's own size, a call for each step."""
    config = Config(
        model=ModelConfig(name=name, kwargs=ConfigDict({"remat": True} if remat else {})),
        data=DataConfig(source="none", batch_size=BATCH, feeder="streaming"),
        optimizer=OptimizerConfig(accumulate=accumulate),
        precision=precision,
        steps_per_call=1,
    )
    shape = variant(name).input_shape
    classes = 1000 if shape[0] > 64 else 10
    labels = {name: np.arange(10 * BATCH) % classes for name in ("train", "validation")}
    dataset = make_unread("none", tuple(map(str, range(classes))), shape, labels)
    return Experiment(config, dataset, Experiment(config, dataset).facts)


def main() -> None:
    """Compiles what is missing and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--limit", type=float, default=1200, metavar="S", help="seconds a network")
    parser.add_argument("--write", action="store_true", help="only write the page")
    args = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name, settings in ROWS:
        row = results.setdefault(make_key(name, settings), {})
        if not row.get("model"):
            row["model"] = asdict(reckon_step(make_experiment(name, **settings)))
        if not args.write and not row.get("step"):
            row |= compile_row(make_experiment(name, **settings), args.limit)
            print(make_key(name, settings), row["notes"], flush=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    PAGE.write_text(render(results))


def make_key(name: str, settings: dict) -> str:
    """The name of a row in the JSON file."""
    return " ".join([name, *(f"{field}={value}" for field, value in settings.items())])


def compile_row(experiment: Experiment, limit: float) -> dict:
    """What libtpu says of a row, and which one."""
    steps, notes = compile_for_tpu(experiment, find_chip("v5e"), [BATCH], limit)
    versions = {name: importlib.metadata.version(name) for name in ("jax", "libtpu", "flax")}
    return {
        "step": asdict(steps[0]) if steps else None,
        "notes": notes,
        "date": str(datetime.date.today()),
        "versions": versions | {"python": platform.python_version()},
    }


def render(results: dict) -> str:
    """The page."""
    done = [row for row in results.values() if row.get("step")]
    versions = sorted({", ".join(f"{k} {v}" for k, v in row["versions"].items()) for row in done})
    dates = sorted({row["date"] for row in done})
    lines = [format_row(*row, results[make_key(*row)]) for row in ROWS]
    return PAGE_TEXT.format(
        table="\n".join(f"| {' | '.join(cells)} |" for cells in lines),
        versions="; ".join(versions),
        dates=" to ".join(sorted({dates[0], dates[-1]})),
        gains=format_gains(results),
        ratios=format_ratios(done),
        missing=", ".join(f"`{k}`" for k, row in results.items() if not row.get("step")) or "none",
    )


def format_row(name: str, settings: dict, row: dict) -> list[str]:
    """The cells of a row; those of libtpu are empty where it has not been asked."""
    chip, model = find_chip("v5e"), Step(**row["model"])
    step = Step(**row["step"]) if row.get("step") else None
    cells = [
        f"`{name}`",
        "x".join(map(str, variant(name).input_shape)),
        ", ".join(f"{field} {value}".removesuffix(" True") for field, value in settings.items()),
        f"{model.flops / BATCH / 1e9:.3g}",
    ]
    if step is None:
        cells += [""] * 5
    else:
        assert step.traffic and step.memory
        arithmetic = step.flops / chip.flops["bfloat16"]
        seconds = max(arithmetic, step.traffic / chip.bandwidth)
        fits = BATCH * (chip.memory - step.state) / (step.memory - step.state)
        cells += [
            f"{step.traffic / BATCH / 1e6:.3g}",
            f"{step.memory / GIB:.3g}",
            f"{float(f'{fits:.2g}'):,.0f}",
            f"{BATCH / seconds:,.0f}, {'arithmetic' if arithmetic == seconds else 'traffic'}",
            f"{step.compile_seconds:.0f}",
        ]
    assert model.traffic and model.memory
    return [*cells, f"{model.traffic / BATCH / 1e6:.3g}", f"{model.memory / GIB:.3g}"]


def format_gains(results: dict) -> str:
    """What a setting of ResNet-50 changes, a line each."""
    plain = results["resnet50"].get("step")
    if not plain:
        return "Not measured yet."
    lines = [
        f"- Donation, always on: without it {plain['donated'] / 2**20:,.0f} MiB more, the old "
        "state beside the new one."
    ]
    for key, row in results.items():
        if key.startswith("resnet50 ") and row.get("step"):
            of = {
                name: row["step"][field] / plain[field]
                for name, field in (
                    ("memory", "memory"),
                    ("traffic", "traffic"),
                    ("FLOPs", "flops"),
                )
            }
            parts = ", ".join(f"{ratio:.2f} times the {name}" for name, ratio in of.items())
            lines.append(f"- `{key.partition(' ')[2]}`: {parts}.")
    return "\n".join(lines)


def format_ratios(done: list[dict]) -> str:
    """Over the rows, how the model's figures relate to libtpu's."""
    parts = []
    for name, field in (("memory", "memory"), ("traffic", "traffic")):
        ratios = [row["model"][field] / row["step"][field] for row in done]
        parts.append(f"{min(ratios):.2f} to {max(ratios):.2f} times libtpu's {name}")
    return " and ".join(parts)


PAGE_TEXT = """# Training steps on a TPU v5e

What `flaxcnn estimate --chip v5e` knows, for networks of the zoo: batch {batch}, `precision="bfloat16"`
(parameters stay float32), SGD with momentum, streamed images, one chip. Nothing here was run on a
TPU: the steps are compiled ahead of time by libtpu on a machine without one, which gives XLA's own
plan of the memory and its count of the bytes read and written.

```
pip install -e '.[tpu]'
JAX_PLATFORMS=cpu python benchmarks/tpu_table.py    # resumes where it was stopped
```

{dates}; {versions}. Compile seconds are those of a busy machine, but
of the last three rows: on an idle one ResNet-50 took 90 to 100 s. Not compiled yet: {missing}.

| network | images | unlike the others | GFLOP/image | MB/image | memory, GiB | batch that fits | images/s at most, by its | compile s | model: MB/image | model: memory, GiB |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
{table}

- GFLOP/image: forward and backward pass and update, two FLOPs a multiply-add, none for padding.
- Memory: arguments, results, temporaries and code at the step's peak, of 15.75 GiB.
- Batch that fits: if all but the state grows with the batch. `flaxcnn estimate` compiles a second
  batch size instead.
- images/s: the roofline, the larger of FLOPs over 197 TFLOP/s and bytes over 819 GB/s. No step
  is faster, but where arrays stay on the chip: XLA counts their bytes, too. Good trainings of CNNs come to about half of it: the fastest ResNet-50 published for an
  A100 has 0.56 of what its memory's traffic allows. For networks as small as the first ones it is
  far off: starting an operation takes longer than its work.
- Model: what `flaxcnn estimate` falls back to where no compiler for the chip is at hand (GPUs, or a
  TPU without libtpu). It reads the program's text (`flaxcnn/estimate/step_model.py`) and gives
  {ratios} in this table.

## What it buys, for ResNet-50

{gains}

Memory is what `remat` and `accumulate` buy; both cost traffic, and so time. XLA counts the loop over
micro-batches once, and here it is multiplied, with what it reads of the whole batch: that figure of
`accumulate` is an upper one (the model has 1.03). BatchNorm sees a micro-batch at a time.

## On a CPU, where it can be measured

One thread of an AMD EPYC with AVX-512 (NPROC=1), other work beside it, processor time of a step,
median of 24 calls, Python 3.11.7, jaxlib 0.10.1, 2026-11-26:

| config | estimate, at least | measured | measured / estimate |
| --- | --- | --- | --- |
| `digits` | 0.75 ms | 1.21 ms | 1.6 |
| `mnist_cnn` | 8.2 ms | 14.6 ms | 1.8 |

With both threads of an older EPYC (AVX2) `mnist_cnn` takes 24.8 ms (its config), 3.5 times the 7.1 ms of
the estimate there. A CPU's rates are nominal ones of its vectors and threads: take the estimate
for an order of magnitude.
""".replace("{batch}", str(BATCH))  # noqa: E501


if __name__ == "__main__":
    main()
