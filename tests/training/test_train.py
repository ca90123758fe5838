"""`flaxcnn.train`, as a notebook, a thread or a scheduler of jobs calls it."""

import json
import signal
from concurrent.futures import ThreadPoolExecutor

import jax
import pytest

import flaxcnn
from flaxcnn.errors import UserError
from flaxcnn.training import Config, DataConfig, ModelConfig


def test_a_run_in_a_thread_is_ended_by_its_callbacks_and_resumed(tmp_path):
    config = Config(
        model=ModelConfig("mnist_mlp_512", kwargs={"hidden": (4,)}),
        data=DataConfig("digits", batch_size=256),
        epochs=4,
    )
    options = dict(jax.config.values)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    rows = []

    def prune(step, row):
        assert step == row["step"]
        rows.append(row)
        raise RuntimeError("not promising")

    def keep(step, row):
        rows.append(row)
        return len(rows) == 3

    def train(**callbacks):
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(flaxcnn.train, config, tmp_path / "run", **callbacks).result()

    with pytest.raises(RuntimeError, match="not promising"):
        train(on_validation=prune)
    assert train(on_validation=keep, stop=lambda: len(rows) == 2) is None
    assert train(on_validation=keep) is None
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    written = [row for row in map(json.loads, lines) if row.pop("split") == "validation"]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [{k: row[k] for k in rows[0]} for row in written] == rows
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert options == dict(jax.config.values)


def test_a_config_may_be_given_by_name(tmp_path):
    with pytest.raises(UserError, match="no config is called digit: did you mean digits"):
        flaxcnn.train("digit", tmp_path / "run")
    (tmp_path / "wrong.py").write_text("get_config = dict")
    with pytest.raises(UserError, match="must return a flaxcnn Config, got dict"):
        flaxcnn.train(tmp_path / "wrong.py", tmp_path / "run")
    assert not (tmp_path / "run").exists()
