"""Damages each file of a stopped run in turn: it ends with the same bits, or says what is lost.

    python tests/faults/damage_drill.py --json damage_drill.json

Each file is cut off, filled with zeros, gets one wrong bit, or is deleted. The same command then
has to end with the SHA-256 of a run that nobody disturbed, or with one line that names a file or a
checkpoint, and nothing of what was left may be gone.
"""

import argparse
import contextlib
import io
import json
import random
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from flaxcnn.errors import UserError
from flaxcnn.training import Config, DataConfig, ModelConfig, OptimizerConfig, RunConfig, train

DAMAGES = ("truncated", "zeroed", "bit flipped", "deleted")
CONFIG = Config(
    model=ModelConfig("digits_cnn"),
    data=DataConfig(batch_size=128),
    optimizer=OptimizerConfig(name="adam", learning_rate=0.01),
    epochs=4,
    steps_per_call=4,
    run=RunConfig(keep_last=2),
)
HASH, MENDED, REFUSED = "same SHA-256", "same SHA-256, and a line about it", "refused in one line"


def stop_run(workdir: Path) -> None:
    """A run that was stopped between its first and its last validation."""
    config = CONFIG
    steps = []

    def stop() -> bool:
        steps.append(None)
        return len(steps) > 6

    with contextlib.suppress(Exception):
        train(config, workdir, stop=stop)
    if (workdir / "result.json").exists() or not list((workdir / "saved").iterdir()):
        sys.exit("the run was not stopped in its middle")


def damage(file: Path, how: str, rng: random.Random) -> None:
    """Does one damage to a file that has bytes."""
    content = bytearray(file.read_bytes())
    place = rng.randrange(len(content))
    if how == "deleted":
        file.unlink()
        return
    if how == "truncated":
        content = content[:place]
    elif how == "zeroed":
        content = bytearray(len(content))
    else:
        content[place] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def go_on(workdir: Path, expected: str) -> str:
    """What the same command comes to."""
    held = {path for path in (workdir / "saved").iterdir() if path.is_dir()}
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            train(CONFIG, workdir)
    except UserError as error:
        if "\n" in str(error):
            return f"LOST: more than a line: {error}"
        if gone := [path.name for path in held if not path.exists()]:
            return f"LOST: refused, and {gone} are gone: {error}"
        return REFUSED
    except Exception as error:
        return f"LOST: {type(error).__name__}: {str(error).splitlines()[:1]}"
    found = json.loads((workdir / "result.json").read_text())["params_sha256"]
    if found != expected:
        return "LOST: another SHA-256"
    return MENDED if said.getvalue().strip() else HASH


def main() -> None:
    """Runs the drill; exit status 1 if a run was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="files whose name has this in it")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    rng, outcomes = random.Random(args.seed), []
    with tempfile.TemporaryDirectory() as folder:
        whole, stopped, run = (Path(folder, name) for name in ("whole", "stopped", "run"))
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            train(CONFIG, whole)
            stop_run(stopped)
        expected = json.loads((whole / "result.json").read_text())["params_sha256"]
        files = [path for path in sorted(stopped.rglob("*")) if path.is_file()]
        files = [path for path in files if path.stat().st_size and args.only in str(path)]
        for file in tqdm(files):
            name = file.relative_to(stopped)
            for how in DAMAGES:
                shutil.rmtree(run, ignore_errors=True)
                shutil.copytree(stopped, run)
                damage(run / name, how, rng)
                outcomes.append((str(name), how, go_on(run, expected)))
    for outcome, count in Counter(outcome for _, _, outcome in outcomes).most_common():
        print(f"{count:4}  {outcome}")
    lost = [outcome for outcome in outcomes if outcome[2].startswith("LOST")]
    print(*(f"{name} {how}: {outcome}" for name, how, outcome in lost), sep="\n")
    refused = [f"{name} {how}" for name, how, outcome in outcomes if outcome == REFUSED]
    print("refused:", ", ".join(refused))
    if args.json:
        Path(args.json).write_text(json.dumps({"seed": args.seed, "outcomes": outcomes}, indent=0))
    sys.exit(int(bool(lost)))


if __name__ == "__main__":
    main()
