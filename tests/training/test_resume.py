"""A run that is killed, stopped or damaged ends with the bits of one that was not."""

import json
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flaxcnn.training import Config, OptimizerConfig, run
from flaxcnn.training.inference import load_run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
EPOCHS = 6
OVERRIDES = [
    f"--config.epochs={EPOCHS}",
    "--config.steps_per_call=4",
    "--config.run.save_every_steps=20",
    "--config.optimizer.ema_decay=0.9",
    "--config.optimizer.schedule.name=plateau",
    "--config.optimizer.schedule.patience=1",
]


def command(workdir: Path, feeder: str) -> list[str]:
    feeding = [f"--config.data.feeder={feeder}", "--config.run.workers=1"]
    return ["train.py", "--workdir", str(workdir), *OVERRIDES, *feeding]


def final_hash(stdout: str) -> str:
    match = re.search(
        r"^test accuracy 0\.\d{4} · 360 images · params ([0-9a-f]{64}) · ", stdout, re.M
    )
    assert match, stdout
    assert stdout.strip().split("\n")[-1] == stdout[match.start() :].strip()
    return match[1]


def rows(workdir: Path) -> list[dict]:
    """In the order of the steps: the hashes of the states come when they are known."""
    file = workdir / "metrics.jsonl"
    found = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return sorted(found, key=lambda row: (row["step"], row["split"]))


@pytest.fixture(scope="module")
def reference(run_command, tmp_path_factory):
    """An uninterrupted run with the resident feeder: its hash and workdir."""
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    finished = run_command(*command(workdir, "resident"))
    assert finished.returncode == 0, finished.stderr
    return final_hash(finished.stdout), workdir


def start(command_env, workdir: Path, feeder: str) -> subprocess.Popen:
    """Its stdout and stderr are files beside `workdir`: a pipe that nobody reads would stop it."""
    beside = workdir.parent
    with open(beside / "stdout", "w") as stdout, open(beside / "stderr", "w") as stderr:
        return subprocess.Popen(
            [sys.executable, *command(workdir, feeder)],
            cwd=ROOT,
            env=command_env,
            stdout=stdout,
            stderr=stderr,
        )


@pytest.mark.parametrize(("feeder", "kills"), [("resident", 1), ("streaming", 2)])
def test_killed_at_random_moments_and_started_again(
    feeder, kills, reference, command_env, run_command, tmp_path
):
    expected, uninterrupted = reference
    seed = random.randrange(2**32)
    print(f"moments drawn with seed {seed}")
    rng, reached = random.Random(seed), []
    for _ in range(kills):
        process = start(command_env, tmp_path / "run", feeder)
        done = max((row["step"] for row in rows(tmp_path / "run")), default=0)
        # Until it is training again; then at any moment of the next second: in a call, in a save.
        while process.poll() is None and not any(
            row["step"] > done for row in rows_while_written(tmp_path / "run")
        ):
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.6))
        assert process.poll() is None, "it ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        reached.append(max(row["step"] for row in rows_while_written(tmp_path / "run")))
    finished = run_command(*command(tmp_path / "run", feeder))
    assert finished.returncode == 0, finished.stderr
    assert final_hash(finished.stdout) == expected, f"killed at steps {reached}, seed {seed}"
    keys = ("step", "split", "epoch", "loss", "accuracy", "learning_rate", "sha256")
    ours, theirs = (
        [{key: row.get(key) for key in keys} for row in rows(folder)]
        for folder in (tmp_path / "run", uninterrupted)
    )
    assert ours == theirs


def rows_while_written(workdir: Path) -> list[dict]:
    """As `rows`, but the last line may be half written."""
    file = workdir / "metrics.jsonl"
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    return [row for row in map(json.loads, lines) if row["split"] != "state"]


def test_sigterm_saves_and_the_same_command_goes_on_with_readers(reference, command_env, tmp_path):
    expected, _ = reference
    process = start(command_env, tmp_path / "run", "streaming")
    while process.poll() is None and not rows_while_written(tmp_path / "run"):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 75, (tmp_path / "stderr").read_text()
    assert "the same command again resumes" in (tmp_path / "stdout").read_text()
    assert not (tmp_path / "run" / "result.json").exists()
    # As older versions left it: the run resumes in its own folder, and is loaded from there.
    (tmp_path / "run" / "saved").rename(tmp_path / "run" / "checkpoints")
    process, steps = start(command_env, tmp_path / "run", "streaming"), set()
    while process.poll() is None:  # a reader beside it: it takes what there is, and changes nothing
        steps.add(load_run(tmp_path / "run", "last").step)
    stdout, stderr = ((tmp_path / name).read_text() for name in ("stdout", "stderr"))
    assert process.returncode == 0, stderr
    assert len(steps) > 2, steps
    assert "resuming from step" in stdout and "\r" not in stdout + stderr
    assert " checkpoints/ " in stdout
    assert not (tmp_path / "run" / "saved").exists()
    assert final_hash(stdout) == expected
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert load_run(tmp_path / "run", "last").step == result["steps"]


def test_a_run_that_stopped_early_and_was_killed_before_its_report_does_not_go_on(tmp_path):
    config = Config(
        optimizer=OptimizerConfig(learning_rate=0.5),  # soon worse than before
        epochs=30,
        early_stopping=1,
        monitor="loss",
    )
    first = run(config, tmp_path)
    assert first is not None and first["steps"] < 30 * 20  # steps in an epoch
    (tmp_path / "result.json").unlink()
    assert run(config, tmp_path) == first


def test_a_finished_run_prints_its_result_again_and_does_nothing(reference, run_command):
    expected, workdir = reference
    before = {f: f.stat().st_mtime_ns for f in workdir.rglob("*.json*")}
    finished = run_command(*command(workdir, "resident"))
    assert finished.returncode == 0
    assert final_hash(finished.stdout) == expected
    assert "macro average" in finished.stdout
    changed = [f.name for f, t in before.items() if f.stat().st_mtime_ns != t]
    assert changed in ([], ["config.json"])


def test_another_config_in_the_same_workdir_is_refused(reference, run_command):
    _, workdir = reference
    refused = run_command(*command(workdir, "resident"), "--config.optimizer.learning_rate=0.5")
    assert refused.returncode == 2
    assert "optimizer.learning_rate: 0.003 -> 0.5" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_the_workdir_holds_what_the_readme_says(reference):
    _, workdir = reference
    names = {path.name for path in workdir.iterdir()} - {".lock"}
    assert names == {
        "config.json",
        "run.json",
        "environment.json",
        "result.json",
        "metrics.jsonl",
        "confusions.jsonl",
        "tensorboard",
        "saved",
        "curves.png",
        "confusion_matrix.png",
        "predictions.npz",
        "predictions.png",
        "report.html",
    }
    (session,) = json.loads((workdir / "environment.json").read_text())
    assert {"jax", "jaxlib", "flax"} <= set(session["versions"])
