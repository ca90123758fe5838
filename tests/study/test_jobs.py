"""Runs side by side: that they are the runs of a study, that mistakes are named, and Ctrl-C."""

import os
import signal
import threading
import time

import pytest

from flaxcnn.errors import UserError
from flaxcnn.study import Study, carry_out, plan_runs
from flaxcnn.study.jobs import run_parallel
from flaxcnn.training import Config, ModelConfig
from flaxcnn.training.sessions import read_sessions
from flaxcnn.training.workdir import Workdir

CONFIG = Config(model=ModelConfig("mnist_mlp_512"), epochs=1)


@pytest.fixture(autouse=True)
def two_threads(monkeypatch):
    monkeypatch.setenv("NPROC", "2")


@pytest.mark.slow
def test_side_by_side_they_come_to_what_one_after_the_other_does(tmp_path, capfd):
    study = Study(CONFIG, {"low": {"optimizer.learning_rate": 1e-4}, "high": {}}, seeds=1)
    runs = plan_runs(study, tmp_path / "jobs")
    assert run_parallel(runs, 2)
    shown = capfd.readouterr()
    assert "epoch" not in shown.out
    assert not shown.err  # without a terminal no bar, but a line for each run
    results = []
    for run in runs:
        result = Workdir(run.workdir).read("result")
        assert read_sessions(Workdir(run.workdir))[-1]["threads"] == 1
        assert f"{run.case}, seed 0: accuracy {result['accuracy']:.4f}" in shown.out
        results.append(result["loss"])
    assert results[0] != pytest.approx(results[1], rel=0.01)
    alone = plan_runs(study, tmp_path / "alone")[1]
    assert carry_out([alone])
    assert Workdir(alone.workdir).read("result")["loss"] == pytest.approx(results[1], rel=1e-4)


@pytest.mark.slow
def test_a_run_that_fails_names_its_case(tmp_path):
    study = Study(CONFIG, {"lost": {"data.source": "folder:nowhere"}}, seeds=1)
    with pytest.raises(UserError, match=r"^case 'lost', seed 0: .*nowhere"):
        run_parallel(plan_runs(study, tmp_path), 2)


@pytest.mark.slow
def test_one_signal_saves_all_and_the_study_can_go_on(tmp_path):
    study = Study(CONFIG, {"long": {"epochs": 100_000}}, seeds=2)
    runs = plan_runs(study, tmp_path)

    def stop():
        while not all(Workdir(run.workdir).has("environment") for run in runs):
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    assert not run_parallel(runs, 2)
    thread.join()
    for run in runs:
        assert not Workdir(run.workdir).has("result")
        assert any(Workdir(run.workdir).checkpoints.iterdir())


@pytest.mark.parametrize("jobs", [0, 3])
def test_jobs_are_at_most_the_cores(jobs, tmp_path):
    with pytest.raises(UserError, match=rf"^--jobs must be in 1\.\.2, .*, got {jobs}$"):
        run_parallel(plan_runs(Study(CONFIG, {"a": {}}), tmp_path), jobs)
