"""A run with stages that is killed, within a stage and between two, ends with the same bits."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CONFIG = """
from flaxcnn.training import Config, DataConfig, ModelConfig, OptimizerConfig

def get_config():
    return Config(
        model=ModelConfig("digits_cnn"),
        data=DataConfig(batch_size=64),
        optimizer=OptimizerConfig(learning_rate=0.01, ema_decay=0.9),
        epochs=4,
        steps_per_call=4,
        stages=(
            ("all", {}),
            ("head", {"optimizer.freeze": "(?!classifier).*", "epochs": 2}),
            ("fine", {"optimizer.freeze": "conv1", "optimizer.layer_decay": 0.5}),
        ),
    )
"""


def test_killed_within_a_stage_and_between_two(command_env, run_command, tmp_path):
    (tmp_path / "staged.py").write_text(CONFIG)

    def command(name):
        return ["train.py", str(tmp_path / "staged.py"), "--workdir", str(tmp_path / name)]

    whole = run_command(*command("whole"))
    assert whole.returncode == 0, whole.stderr
    seed = random.randrange(2**32)
    print(f"moments drawn with seed {seed}")
    rng, run = random.Random(seed), tmp_path / "run"
    for reached in (run / "all" / "metrics.jsonl", run / "all" / "result.json", run / "fine"):
        with open(tmp_path / "log", "w") as log:
            process = subprocess.Popen(
                [sys.executable, *command("run")], cwd=ROOT, env=command_env, stdout=log, stderr=log
            )
        while process.poll() is None and not reached.exists():
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        assert process.poll() is None, (tmp_path / "log").read_text()
        process.send_signal(signal.SIGKILL)
        process.wait()
    finished = run_command(*command("run"))
    assert finished.returncode == 0, finished.stderr
    results = [json.loads((tmp_path / n / "result.json").read_text()) for n in ("whole", "run")]
    for stage in ("all", "head", "fine"):
        hashes = {result["stages"][stage]["params_sha256"] for result in results}
        assert len(hashes) == 1, f"{stage}, seed {seed}"
    assert finished.stdout.count("stage head: test accuracy") == 1
    evaluated = run_command("-m", "flaxcnn", "evaluate", "--workdir", str(run))
    assert evaluated.returncode == 0 and "test accuracy" in evaluated.stdout
