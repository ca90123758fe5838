import dataclasses
import gc
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import jax
import numpy as np
import psutil
import pytest

from flaxcnn.data import feeders
from flaxcnn.data.feeders import Resident, Streaming
from flaxcnn.data.imbalance import Draws
from flaxcnn.data.plans import EvalPlan, TrainPlan
from flaxcnn.data.sources import load_dataset
from flaxcnn.data.splits import LazySplit
from flaxcnn.errors import UserError


def plan_of(**kwargs):
    count = kwargs.pop("num_examples", 103)
    arguments = {"batch_size": 10, "steps_per_call": 4, "epochs": 3, "seed": 0}
    return TrainPlan(Draws(np.zeros(count, np.int32), np.array([count])), **arguments | kwargs)


def test_an_epoch_is_a_permutation_cut_into_batches():
    plan = plan_of()
    assert plan.steps_per_epoch == 10 and plan.total_steps == 30 and len(plan) == 9
    calls = list(plan)
    assert [call.shape for call in calls] == [(4, 10), (4, 10), (2, 10)] * 3
    assert all(call.dtype == np.int32 for call in calls)
    epochs = [np.concatenate([call.ravel() for call in calls[i : i + 3]]) for i in (0, 3, 6)]
    for epoch in epochs:
        assert len(np.unique(epoch)) == 100 and epoch.min() >= 0 and epoch.max() < 103
    assert not np.array_equal(epochs[0], epochs[1])
    dropped = [set(range(103)) - set(epoch) for epoch in epochs]
    assert dropped[0] != dropped[1]  # another three every time


def test_a_step_sees_the_same_for_any_steps_per_call_and_number_of_epochs():
    def steps(plan):
        return np.concatenate(list(plan))

    expected = steps(plan_of())
    np.testing.assert_array_equal(steps(plan_of(steps_per_call=1)), expected)
    np.testing.assert_array_equal(steps(plan_of(steps_per_call=50)), expected)
    np.testing.assert_array_equal(steps(plan_of(epochs=5))[:30], expected)
    np.testing.assert_array_equal(plan_of()[7], plan_of()[7])
    assert not np.array_equal(steps(plan_of(seed=1)), expected)


def test_calls_and_steps():
    plan = plan_of()
    assert [plan.first_step(call) for call in range(10)] == [0, 4, 8, 10, 14, 18, 20, 24, 28, 30]
    assert [plan.call_at(plan.first_step(call)) for call in range(10)] == list(range(10))
    for step in (1, 9, 12, 29, 31, 40, -1, -10):
        with pytest.raises(ValueError, match=f"step {step}"):
            plan.call_at(step)
    for call in (-1, 9):
        with pytest.raises(IndexError):
            plan[call]


def test_batch_larger_than_the_split():
    assert len(plan_of(batch_size=103)) == 3
    with pytest.raises(UserError, match=r"data\.batch_size is 104, .* 103 images"):
        plan_of(batch_size=104)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 63, 64, 65, 360, 1000])
@pytest.mark.parametrize("batches_per_call", [1, 3, 8, 100])
def test_evaluation_covers_every_example_once(count, batches_per_call):
    plan = EvalPlan(count, 8, batches_per_call)
    calls = [(plan[i], plan.mask(i)) for i in range(len(plan))]
    assert len({indices.shape for indices, _ in calls}) == 1  # one compilation
    indices, mask = (np.concatenate([c.ravel() for c in part]) for part in zip(*calls, strict=True))
    np.testing.assert_array_equal(indices[mask == 1], np.arange(count))
    assert (indices[mask == 0] == 0).all() and set(mask) <= {0.0, 1.0}
    assert mask.dtype == np.float32 and indices.dtype == np.int32
    assert (np.diff(mask) <= 0).all()  # padding is at the end only
    assert calls[0][0].shape[0] <= batches_per_call
    assert len(indices) < count + 8 * len(plan)  # less than a batch per call is padded
    for call in (-1, len(plan)):
        with pytest.raises(IndexError):
            plan.mask(call)


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits").splits["train"]


@pytest.fixture
def lazy(tmp_path):
    """A split that is decoded when loaded: 40 images of 6x8, each of one value."""
    for i in range(48):
        path = tmp_path / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), np.full((6, 8, 3), i, np.uint8))
    dataset = load_dataset(f"folder:{tmp_path}", split=(5 / 6, 0, 1 / 6), resident_limit=0)
    assert isinstance(dataset.splits["train"], LazySplit) and len(dataset.splits["train"]) == 40
    return dataset.splits["train"]


def resident_items(split, plan, start=0):
    feeder = Resident(split)
    take = jax.jit(jax.vmap(feeder.batch, in_axes=(None, 0)))
    return [take(feeder.arrays, indices) for indices in feeder.feed(plan, start)]


def check_same(items, expected):
    assert len(items) == len(expected) > 0
    for (images, labels), (expected_images, expected_labels) in zip(items, expected, strict=True):
        assert images.dtype == np.uint8 and labels.dtype == np.int32
        np.testing.assert_array_equal(images, expected_images)
        np.testing.assert_array_equal(labels, expected_labels)


def test_resident_gathers_what_the_plan_says(digits):
    plan = plan_of(num_examples=len(digits), batch_size=50, epochs=1)
    for (images, labels), indices in zip(resident_items(digits, plan), plan, strict=True):
        expected = digits.load(indices.ravel())
        np.testing.assert_array_equal(images, expected[0].reshape(*indices.shape, 8, 8, 1))
        np.testing.assert_array_equal(labels, expected[1].reshape(indices.shape))


@pytest.mark.parametrize("plan_type", [TrainPlan, EvalPlan])
def test_feeders_agree_on_digits(digits, plan_type):
    train = plan_of(num_examples=len(digits), batch_size=64, epochs=2)
    plan = train if plan_type is TrainPlan else EvalPlan(len(digits), 64, 5)
    expected = resident_items(digits, plan)
    streaming = Streaming(digits, workers=2)
    assert streaming.arrays == ()
    check_same([streaming.batch((), item) for item in streaming.feed(plan)], expected)


def test_feed_from_the_middle_is_the_tail_of_the_whole(digits):
    plan = plan_of(num_examples=len(digits), batch_size=128)
    for feeder in (Resident(digits), Streaming(digits, 0)):
        whole, tail = list(feeder.feed(plan)), list(feeder.feed(plan, 4))
        assert len(tail) == len(whole) - 4
        for a, b in zip(jax.tree.leaves(whole[4:]), jax.tree.leaves(tail), strict=True):
            np.testing.assert_array_equal(a, b)
        assert list(feeder.feed(plan, len(plan))) == []


def test_array_split_needs_no_processes(digits):
    before = psutil.Process().children()
    feed = Streaming(digits, workers=2).feed(plan_of())
    next(feed)
    assert psutil.Process().children() == before
    feed.close()


def test_threads_agree_with_resident_on_files(lazy):
    plan = plan_of(num_examples=40, batch_size=7, steps_per_call=2)
    check_same(list(Streaming(lazy, 0).feed(plan)), resident_items(lazy, plan))


def shared_memory():
    """What this process has mapped of it: other processes of the machine may hold their own."""
    return [map.path for map in psutil.Process().memory_maps() if "/psm_" in map.path]


@pytest.mark.parametrize("scarce", [False, True])
def test_processes_agree_with_resident_on_files(lazy, scarce, monkeypatch):
    plan = plan_of(num_examples=40, batch_size=7, steps_per_call=2)
    if scarce:
        monkeypatch.setattr(feeders, "_least_shared_size", lambda *_: 2**62)
    gc.disable()  # what is freed is freed by the feed
    try:
        items = list(Streaming(lazy, workers=2).feed(plan, start=1))
        assert shared_memory() == []
    finally:
        gc.enable()
    check_same(items, resident_items(lazy, plan)[1:])


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_images_are_replaced_alike_and_named_once(lazy, workers, capsys):
    plan = plan_of(num_examples=40, batch_size=8, steps_per_call=2, epochs=3)
    for place in (4, 5, 39):
        Path(lazy.records.paths[lazy.indices[place]]).write_bytes(b"")
    if not workers:  # a process tells the same, and takes long to start
        with pytest.raises(UserError, match=r"\.png is damaged: it is empty \(to skip it: .*\)$"):
            list(Streaming(lazy, workers).feed(plan))
    skipping = dataclasses.replace(lazy, replace=True)
    items = list(Streaming(skipping, workers).feed(plan))
    order = np.array([{4: 6, 5: 6, 39: 0}.get(i, i) for i in range(40)])
    whole = [x[order] for x in skipping.load(np.arange(40))]
    check_same(items, [[x[indices] for x in whole] for indices in plan])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(line.startswith("skipped: ") for line in lines)
    assert len(skipping.replaced) == 3


def test_scarce_shared_memory_is_not_used(lazy, monkeypatch):
    calls = feeders._Calls(lazy, plan_of(num_examples=40), 0)
    needed = 4 * 10 * (6 * 8 * 3 + 4) * 4 * 2  # steps, batch, image and label, calls, workers
    for free, least in ((needed + 1, 0), (needed, 2**62)):
        monkeypatch.setattr(
            feeders.shutil, "disk_usage", lambda _, free=free: type("usage", (), {"free": free})
        )
        assert feeders._least_shared_size(calls, 2) == least


def test_plans_and_splits_are_picklable(lazy, digits):
    for thing in (plan_of(), EvalPlan(10, 4, 2), lazy, digits):
        copy = pickle.loads(pickle.dumps(thing))
        if hasattr(thing, "load"):
            for a, b in zip(copy.load(np.arange(3)), thing.load(np.arange(3)), strict=True):
                np.testing.assert_array_equal(a, b)
        else:
            np.testing.assert_array_equal(copy[0], thing[0])


SCRIPT = """
import os, signal, sys, time
import numpy as np

class Slow:
    labels = np.zeros(4096, np.int32)
    def __len__(self):
        return 4096
    def load(self, indices):
        import jax
        images = np.zeros((len(indices), 8, 8, 1), np.uint8)
        images[:, 0, 0, 0] = jax.config.jax_platforms == "cpu"
        images[:, 0, 1, 0] = signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
        return images, np.full(len(indices), os.getpid(), np.int32)

if __name__ == "__main__":
    from flaxcnn.data.feeders import Streaming
    from flaxcnn.data.imbalance import Draws
    from flaxcnn.data.plans import TrainPlan
    plan = TrainPlan(Draws(np.zeros(4096, np.int32), np.array([4096])), 64, 2, 100, 0)
    feed = Streaming(Slow(), workers=2).feed(plan)
    items = [next(feed) for _ in range(4)]
    pids = [int(labels[0, 0]) for _, labels in items]
    print(*pids, all(image[..., 0, :2, 0].all() for image, _ in items), flush=True)
    if sys.argv[1] == "wait":
        time.sleep(60)
    for pid in set(pids):
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
    print(sum(1 for _ in zip(range(20), feed)), flush=True)
    raise SystemExit("a user error")  # with the feed still open
"""


def start(tmp_path, mode):
    """A plain script with a feed of two processes. Its process, the workers, and its stdout."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, str(script), mode],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    *pids, ready = process.stdout.readline().split()
    assert ready == "True"
    pids = [int(pid) for pid in pids]
    assert len(set(pids)) == 2 and process.pid not in pids  # turn by turn
    assert pids[:2] == pids[2:]
    return process, set(pids)


def wait_until_gone(pids, seconds=15):
    deadline = time.monotonic() + seconds
    while any(psutil.pid_exists(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(psutil.pid_exists(pid) for pid in pids)


def test_workers_do_not_survive_a_killed_parent(tmp_path):
    process, workers = start(tmp_path, "wait")
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert wait_until_gone(workers)


def test_workers_outlive_signals_and_an_error_ends_them_without_noise(tmp_path):
    process, workers = start(tmp_path, "end")
    out, err = process.communicate(timeout=60)
    # grain logs this, in each process that imports it, where jaxlib is older than 0.11.
    lines = [line for line in err.splitlines() if "worker profiling requires jaxlib" not in line]
    assert out == "20\n" and lines == ["a user error"] and process.returncode == 1
    assert wait_until_gone(workers)
