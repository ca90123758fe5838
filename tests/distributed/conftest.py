"""Processes of one run on this machine: each with devices of its own, over loopback (gloo)."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FAST = "--xla_backend_optimization_level=0"  # to compile
CONFIG = """
from flaxcnn.training import Config, DataConfig, ModelConfig, OptimizerConfig


def get_config():
    return Config(
        model=ModelConfig(
            "digits_cnn", kwargs={"maps": ((4, 3), "pool", (8, 3)), "hidden": (8,)}
        ),
        data=DataConfig("digits", batch_size=64, augment=(("flip",),)),
        optimizer=OptimizerConfig("adam", 0.01),
        epochs=2,
        steps_per_call=5,
    )
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


@pytest.fixture
def config(tmp_path) -> Path:
    """A small network with batch statistics and noise; two epochs of 20 steps in four calls."""
    file = tmp_path / "small.py"
    file.write_text(CONFIG)
    return file


@pytest.fixture
def start(command_env, tmp_path):
    """Starts processes with two devices each: (code or arguments of one, count) -> Popens.

    A `{...}` in them is of the process: {index}, {count}, {port}.
    """
    started = []

    def start(*arguments, count=2, devices=2, **env):
        port = free_port()
        env = (
            command_env
            | {"JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": str(ROOT), "XLA_FLAGS": FAST}
            | env
        )
        for index in range(count):
            words = {"index": index, "count": count, "port": port}
            own = [str(a).format(**words) for a in arguments]
            with open(tmp_path / f"{len(started)}.log", "w") as log:
                process = subprocess.Popen(
                    [sys.executable, *own],
                    cwd=tmp_path,
                    env=env,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            process.log = Path(log.name)
            started.append(process)
        return started[-count:]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()
