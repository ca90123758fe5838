"""A run of several processes has the losses of one, and outlives each of them."""

import contextlib
import json
import re
import signal
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from flaxcnn.data.imbalance import Draws
from flaxcnn.data.plans import EvalPlan, Share, TrainPlan
from flaxcnn.errors import UserError
from flaxcnn.exit_status import MISTAKE, STOPPED
from flaxcnn.training import sharding
from flaxcnn.training.sharding import find_processes, is_launched, make_parallel

ROOT = Path(__file__).parents[2]
JOINED = ("--coordinator", "localhost:{port}", "--num-processes", "{count}", "--process-id")
# As inside Ray or Kubeflow: JAX is initialised already. Stops after a call with STOP=1; takes its
# time with SLOW=1, to be killed.
FOREIGN = """
import os, sys, time
import jax
if {count} > 1:
    jax.distributed.initialize("localhost:{port}", {count}, {index}, heartbeat_timeout_seconds=10)
import flaxcnn
def stop():
    time.sleep(float(os.environ.get("SLOW", 0)))
    return "STOP" in os.environ and {index} == {count} - 1
result = flaxcnn.train(sys.argv[1], sys.argv[2], stop=stop)
print("result", result and result["params_sha256"])
"""
CHANGED = """ 0
config = flaxcnn.training.load_config(sys.argv[1])
config.data.source = "folder:photos" if {index} == 0 else "folder:nowhere"
config.data.batch_size = 8
result = """


def rows(workdir, split="train"):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == split]


def losses(workdir):
    return [row["loss"] for split in ("train", "validation") for row in rows(workdir, split)]


def wait(processes, timeout=600):
    statuses = [process.wait(timeout) for process in processes]
    return statuses, [process.log.read_text() for process in processes]


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_shares_are_the_plan_cut_up(parts):
    draws = Draws(np.arange(50, dtype=np.int32) % 3, np.array([17, 17, 16]))
    plan = TrainPlan(draws, batch_size=8, steps_per_call=4, epochs=2, seed=1)
    shares = [Share(plan, part, parts) for part in range(parts)]
    for call in range(len(plan)):
        together = np.concatenate([share[call] for share in shares], axis=1)
        np.testing.assert_array_equal(together, plan[call])
    plan = EvalPlan(50, batch_size=8, batches_per_call=3)
    seen = []
    for share in (Share(plan, part, parts) for part in range(parts)):
        for call in range(len(share)):
            seen += share[call][share.mask(call) == 1].tolist()
    assert sorted(seen) == list(range(50))


def test_who_says_that_there_are_others():
    assert find_processes("", None, None, {}) is None
    assert find_processes("h:1", 2, 0, {}) == ("h:1", 2, 0)
    env = {"JAX_COORDINATOR_ADDRESS": "h:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
    assert find_processes("", None, None, env) == ("h:1", 4, 3)
    env = env | {"JAX_PROCESS_ID": "", "JOB_COMPLETION_INDEX": "1"}
    assert find_processes("", None, None, env) == ("h:1", 4, 1)
    assert find_processes("auto", None, None, env) is None
    for given in (("h:1", 2, None), ("", 2, 0), ("h:1", 2, 2), ("h:1", 0, 0)):
        with pytest.raises(UserError, match="--num-processes|--coordinator|--process-id"):
            find_processes(*given, {})
    assert is_launched({"SLURM_STEP_NUM_TASKS": "2"})
    assert is_launched({"OMPI_COMM_WORLD_SIZE": "8"})
    assert is_launched({"TPU_WORKER_HOSTNAMES": "a,b"})
    # An interactive job of one task, Colab's TPU.
    assert not is_launched({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "1"})
    assert not is_launched({"TPU_WORKER_HOSTNAMES": "localhost"})


def test_pmap_is_for_one_process(monkeypatch):
    monkeypatch.setattr(sharding, "count_processes", lambda: 2)
    with pytest.raises(UserError, match="parallel=pmap is for one process, and there are 2"):
        make_parallel("pmap")


# What the processes of a run exchange, and where their arrays are.
EXCHANGE = """
import jax, numpy as np
from flaxcnn.errors import UserError
from flaxcnn.training import sharding as s
assert s.gather(1) == [1] and s.from_first(2) == 2 and s.is_first()
s.join("localhost:{port}", 2, {index})
s.join()  # never twice
assert s.count_processes() == 2 and s.is_first() == ({index} == 0)
assert s.gather("x" * {index}) == ["", "x"]
assert s.from_first([{index}, None]) == [0, None]
s._CHUNK = 100
sent = np.array([-0.0, np.nan] * 100) if s.is_first() else None
received = s.from_first(sent)
assert received.tobytes() == np.array([-0.0, np.nan] * 100).tobytes()
assert s.any_process(lambda: {index} == 1) and not s.any_process(lambda: False)
assert s.on_first(lambda: 7) == (7 if {index} == 0 else None)
assert s.together(lambda: {index}) == {index}
def mistake():
    if {index} == 1:
        raise UserError("its data is missing")
for ask in (s.together, s.any_process):
    try:
        ask(mistake)
        raise SystemExit("no mistake")
    except s.AgreedError as error:
        assert str(error) == "process 1: its data is missing"
own = dict(key=jax.random.key(3), x=np.arange(3.0, dtype=np.float32))
tree = s.tree_from_first(own if s.is_first() else None, lambda: jax.eval_shape(lambda: own))
parallel = s.make_parallel("jit")
assert parallel.num_devices == 4
placed = parallel.replicate(tree)
back = parallel.unreplicate(placed)
assert np.array_equal(back["x"], own["x"]) and back["x"].is_fully_addressable
assert np.array_equal(jax.random.key_data(back["key"]), jax.random.key_data(own["key"]))
batch = np.arange(16, dtype=np.float32).reshape(2, 8)
items = parallel.split(batch[:, 4 * {index} : 4 * {index} + 4])
assert items.shape == (2, 8)
call = parallel.compile_train(lambda state, arrays, items, scale: (state, items @ items.T * scale))
_, product = call(placed, (), items, 2.0)
assert np.array_equal(jax.device_get(product), 2 * batch @ batch.T)
"""


@pytest.mark.slow
def test_what_processes_exchange(start):
    statuses, logs = wait(start("-c", EXCHANGE))
    assert statuses == [0, 0], logs


def train_alone(start, config):
    """One process with four devices, compiled as the others are, in the folder `one`."""
    run = ("-m", "flaxcnn", "train", str(config), "--workdir", "one")
    statuses, logs = wait(start(*run, count=1, devices=4))
    assert statuses == [0], logs


@pytest.mark.zoo
@pytest.mark.timeout(900)
def test_two_processes_train_as_one(start, config, tmp_path):
    streamed = "--config.data.feeder=streaming"  # each loads its half of a batch; else resident
    run = ("-m", "flaxcnn", "train", str(config), "--workdir", "two", streamed)
    statuses, logs = wait(start(*run, *JOINED, "{index}"))
    assert statuses == [0, 0], logs
    assert "test accuracy" in logs[0]
    assert not re.sub(r"\[Gloo\].*", "", logs[1]).strip(), "prints are the first's"
    train_alone(start, config)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    one, two = (json.loads((tmp_path / n / "result.json").read_text()) for n in ("one", "two"))
    assert two["images"] == one["images"]
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-3)
    one, two = (dict(np.load(tmp_path / n / "predictions.npz")) for n in ("one", "two"))
    np.testing.assert_array_equal(two["index"], one["index"])
    np.testing.assert_array_equal(two["true_label"], one["true_label"])
    np.testing.assert_allclose(two["loss"], one["loss"], rtol=1e-2, atol=1e-3)
    devices = json.loads((tmp_path / "two" / "environment.json").read_text())[0]["devices"]
    assert (devices["count"], devices["process_count"]) == (4, 2)
    assert len(list((tmp_path / "two" / "saved").iterdir())) == 2
    assert (tmp_path / "two" / "report.html").exists(), logs


@pytest.mark.zoo
@pytest.mark.timeout(900)
def test_a_run_is_resumed_by_any_number_of_processes(start, config, tmp_path):
    def session(count, devices, **env):
        code = ("-c", FOREIGN, str(config), "run")
        statuses, logs = wait(start(*code, count=count, devices=devices, **env))
        assert statuses == [0] * count, logs
        assert len({log.splitlines()[-1] for log in logs}) == 1, "all have the same result"
        return logs

    for count, devices in ((2, 2), (1, 4), (2, 1), (1, 1)):
        session(count, devices, STOP="1")  # asked in the last process, and all stop
    assert rows(tmp_path / "run")[-1]["step"] == 20
    logs = session(1, 2)
    assert "resuming from step 20 of 40" in logs[0]
    train_alone(start, config)
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    session(2, 2)  # finished: left alone
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


@pytest.mark.zoo
@pytest.mark.timeout(900)
def test_a_signal_to_one_stops_all_at_the_same_step(start, config, tmp_path):
    run = ("-m", "flaxcnn", "train", str(config), "--workdir", "run", "--config.epochs=200")
    processes = start(*run, *JOINED, "{index}")
    wait_for(lambda: rows(tmp_path / "run"))
    processes[1].send_signal(signal.SIGTERM)
    statuses, logs = wait(processes)
    assert statuses == [STOPPED, STOPPED], logs
    saved = max(int(path.name) for path in (tmp_path / "run" / "saved").iterdir())
    assert rows(tmp_path / "run")[-1]["step"] == saved


@pytest.mark.zoo
@pytest.mark.timeout(900)
@pytest.mark.parametrize("killed", [0, 1])
def test_one_that_is_killed_ends_the_others_and_a_restart_resumes(start, config, tmp_path, killed):
    code = ("-c", FOREIGN, str(config), "run")
    processes = start(*code, SLOW="2")
    wait_for(lambda: list((tmp_path / "run" / "saved").glob("20")))
    processes[killed].kill()
    began = time.monotonic()
    other = processes[1 - killed]
    assert other.wait(60) != 0
    assert time.monotonic() - began < 30, "the heartbeat is 10 s"
    statuses, logs = wait(start(*code))
    assert statuses == [0, 0], logs
    assert "resuming from step 20 of 40" in logs[0]
    statuses, logs = wait(start("-c", FOREIGN, str(config), "whole"))
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


@pytest.mark.zoo
@pytest.mark.timeout(900)
def test_a_mistake_ends_all_processes(start, config, tmp_path):
    run = ("-m", "flaxcnn", "train", str(config), "--workdir", "run", *JOINED, "{index}")
    statuses, logs = wait(start(*run, "--config.parallel=pmap"))
    assert statuses == [MISTAKE, MISTAKE], logs
    assert all("parallel=pmap is for one process, and there are 2" in log for log in logs)
    assert not (tmp_path / "run").exists()
    # What only one process meets, as its data is not there.
    for index in range(40):
        path = tmp_path / "photos" / f"class{index % 2}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((8, 8), 6 * index, np.uint8))
    code = FOREIGN.replace("flaxcnn.train(sys", CHANGED + "flaxcnn.train(config or sys")
    statuses, logs = wait(start("-c", code, str(config), "run"))
    assert statuses == [1, 1], logs
    assert all("process 1: the run's data set, folder:nowhere, is not there" in x for x in logs)


@pytest.mark.zoo
@pytest.mark.timeout(900)
def test_the_documents_launcher(command_env, config, tmp_path, run_command):
    text = (ROOT / "docs" / "multi_host.md").read_text()
    (code,) = re.findall(r"```python\n(import multiprocessing.*?)```", text, re.DOTALL)
    assert len(code.splitlines()) <= 24
    code = code.replace('"digits"', repr(str(config))).replace("runs/two", str(tmp_path / "two"))
    file = tmp_path / "launch.py"
    file.write_text(code)
    done = run_command(file, PYTHONPATH=str(ROOT), JAX_NUM_CPU_DEVICES="2", timeout=600)
    assert done.returncode == 0, done.stderr
    assert re.search(r"accuracy 0\.\d+", done.stdout)
    assert len(rows(tmp_path / "two")) == 8


def wait_for(condition, timeout=400):
    for _ in range(timeout * 10):
        with contextlib.suppress(OSError):  # a file that is being replaced
            if condition():
                return
        time.sleep(0.1)
    raise AssertionError("it does not come")
