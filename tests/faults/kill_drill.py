"""Kills runs at random moments until one is through, again and again: every end has the same bits.

    python tests/faults/kill_drill.py --kills 100 --json kill_drill.json

A moment is drawn from the whole life of a command: while it imports, compiles, steps, evaluates,
saves, draws. Each restart has to resume or to finish, and the run's final SHA-256 has to be that of
a run that nobody disturbed. With `--signal TERM` the command is asked to stop; with `--power-cut`
what was written in the second before the kill is cut off at a random byte, as a disk may leave it.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from tqdm import tqdm

ROOT = Path(__file__).parents[2]
FRESH = 1.0  # seconds: what is younger may not have reached the disk
STOPPED = 75  # exit status of a run that was asked to stop
SMALL = ("--config.steps_per_call=4", "--config.run.save_every_steps=8", "--no-report")

STREAMED = """
from flaxcnn.training import Config, DataConfig, ModelConfig, OptimizerConfig, RunConfig

def get_config():
    return Config(
        model=ModelConfig("digits_cnn"),
        data=DataConfig("folder:{folder}", batch_size=32, feeder="streaming", channels=1),
        optimizer=OptimizerConfig(learning_rate=0.01),
        run=RunConfig(workers=1),
        epochs=4,
    )
"""
MASKS = """
from flaxcnn.training import Config, DataConfig, ModelConfig, OptimizerConfig, TaskConfig

def get_config():
    return Config(
        model=ModelConfig("unet", kwargs={{"features": (8, 16)}}),
        task=TaskConfig("segmentation"),
        data=DataConfig("masks:{folder}", batch_size=8, augment=(("flip",),)),
        optimizer=OptimizerConfig(name="adam", learning_rate=0.01),
        epochs=20,
    )
"""


def make_digits(folder: Path) -> list[str]:
    """The default run: resident data."""
    return ["digits", "--config.epochs=6", "--config.optimizer.ema_decay=0.9"]


def make_streamed(folder: Path) -> list[str]:
    """A folder of small images, decoded by a process of its own."""
    digits = load_digits()
    for index, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        (folder / "images" / str(label)).mkdir(parents=True, exist_ok=True)
        pixels = Image.fromarray((image * 15.9).astype(np.uint8))
        pixels.save(folder / "images" / str(label) / f"{index}.png")
    (folder / "streamed.py").write_text(STREAMED.format(folder=folder / "images"))
    return [str(folder / "streamed.py")]


def make_masks(folder: Path) -> list[str]:
    """Segmentation of blocks in three colours."""
    for split, count in (("train", 48), ("val", 16), ("test", 16)):
        rng = np.random.default_rng(count)
        for kind in ("images", "masks"):
            (folder / "masks" / split / kind).mkdir(parents=True)
        for index in range(count):
            classes = np.kron(rng.integers(0, 3, (2, 3)), np.ones((8, 8), int)).astype(np.uint8)
            image = np.array([30, 120, 220])[classes] + rng.integers(-20, 20, classes.shape)
            for kind, pixels in (("images", image.astype(np.uint8)), ("masks", classes)):
                file = folder / "masks" / split / kind / f"{index}.png"
                Image.fromarray(pixels).save(file)
    (folder / "blocks.py").write_text(MASKS.format(folder=folder / "masks"))
    return [str(folder / "blocks.py")]


CASES = {"digits": make_digits, "streamed": make_streamed, "masks": make_masks}


class Drill:
    """One case: its command, and what a run that nobody disturbs comes to."""

    def __init__(self, name: str, folder: Path, number: int, cut: bool, rng: random.Random):
        self.name, self._folder, self._number, self._cut, self._rng = name, folder, number, cut, rng
        self._arguments = [*CASES[name](folder), *SMALL]
        self._log = folder / "log"
        started = time.monotonic()
        status = self._start(folder / "whole").wait()
        if status:
            sys.exit(f"{name}: exit status {status}\n{self._log.read_text()}")
        self.seconds = time.monotonic() - started
        self.sha256 = self._hash(folder / "whole")
        self.kills, self.runs, self.failures = 0, 0, list[str]()

    def one_run(self, most: int, bar: tqdm) -> None:
        """Starts one run and kills it, up to `most` times in all, until it has ended by itself."""
        workdir = self._folder / "run"
        shutil.rmtree(workdir, ignore_errors=True)
        while True:
            process = self._start(workdir)
            try:
                if self.kills >= most:
                    process.wait()
                else:
                    process.wait(self._rng.uniform(0, 1.1 * self.seconds))
            except subprocess.TimeoutExpired:
                self._strike(process, workdir)
                self.kills += 1
                bar.update()
                if process.returncode in (-self._number, STOPPED, 0):
                    continue
            break
        self.runs += 1
        if process.returncode:
            said = self._log.read_text().strip().splitlines()[-1:] or [""]
            self.failures.append(f"exit status {process.returncode}: {said[0]}")
        elif self._hash(workdir) != self.sha256:
            self.failures.append("another SHA-256")

    def _start(self, workdir: Path) -> subprocess.Popen:
        command = [sys.executable, "-m", "flaxcnn", "train", *self._arguments]
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "NPROC": "1", "PYTHONPATH": str(ROOT)}
        with open(self._log, "w") as log:
            return subprocess.Popen(
                [*command, "--workdir", str(workdir)],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _strike(self, process: subprocess.Popen, workdir: Path) -> None:
        if self._number == signal.SIGTERM:
            process.terminate()
            process.wait()
            return
        os.killpg(process.pid, signal.SIGKILL)  # its decoding processes, too: a machine that dies
        process.wait()
        if self._cut:
            now = time.time()
            for file in sorted(path for path in workdir.rglob("*") if path.is_file()):
                size = file.stat().st_size
                if size and now - file.stat().st_mtime < FRESH and self._rng.random() < 0.5:
                    os.truncate(file, self._rng.randrange(size))

    def _hash(self, workdir: Path) -> str:
        return json.loads((workdir / "result.json").read_text())["params_sha256"]


def main() -> None:
    """Runs the drill; exit status 1 if a run was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="in all")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--signal", default="KILL", choices=("KILL", "TERM"))
    parser.add_argument("--power-cut", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    number, rng = getattr(signal, f"SIG{args.signal}"), random.Random(args.seed)
    names, results, failed = args.cases.split(","), [], False
    for index, name in enumerate(names):
        share = (args.kills + len(names) - 1 - index) // len(names)
        with tempfile.TemporaryDirectory() as folder, tqdm(total=share, desc=name) as bar:
            drill = Drill(name, Path(folder), number, args.power_cut, rng)
            while drill.kills < share:
                drill.one_run(share, bar)
        failed |= bool(drill.failures)
        print(
            f"{name}: {drill.kills} times killed ({args.signal}"
            f"{', power cut' if args.power_cut else ''}), {drill.runs} runs of "
            f"{drill.seconds:.1f} s, {len(drill.failures)} lost",
            *drill.failures,
            sep="\n  ",
        )
        results.append(
            {"case": name, "kills": drill.kills, "runs": drill.runs, "lost": drill.failures}
        )
    if args.json:
        about = {"signal": args.signal, "power_cut": args.power_cut, "seed": args.seed}
        Path(args.json).write_text(json.dumps({**about, "cases": results}, indent=1) + "\n")
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
