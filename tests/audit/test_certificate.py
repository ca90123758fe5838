"""`verify`: what was written is done again, and what somebody changed is found."""

import json
import shutil

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from flaxcnn.audit import certificate as module
from flaxcnn.audit import verify
from flaxcnn.audit.replay import open_run
from flaxcnn.commands.main import main
from flaxcnn.commands.verify import format_certificate
from flaxcnn.errors import UserError
from flaxcnn.training import (
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    train,
)
from flaxcnn.training.state import hash_layout, hash_tree
from flaxcnn.training.workdir import Workdir

STEPS_PER_EPOCH = 5
EPOCHS = 10


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run with dropout, augmentation and a rate that depends on its validations."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    config = Config(
        model=ModelConfig("mnist_mlp_512", kwargs={"hidden": (8,), "dropout": 0.2}),
        data=DataConfig("digits", batch_size=256, augment=(("flip",),)),
        optimizer=OptimizerConfig(schedule=ScheduleConfig(name="plateau", patience=1)),
        run=RunConfig(keep_last=2, keep_best=0),
        epochs=EPOCHS,
        steps_per_call=STEPS_PER_EPOCH,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flaxcnn.training.report._draw", lambda *arguments: None)
        train(config, folder)
    return folder


@pytest.fixture
def copied(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture(autouse=True)
def compiled_once(monkeypatch, trained):
    """The programs of all replays are those of the first: the runs are copies of one."""
    monkeypatch.setattr(module, "Replay", lambda _: _shared(trained))


_replays = {}


def _shared(trained):
    if not _replays:
        _replays[trained] = _REPLAY(open_run(trained).experiment)
    return _replays[trained]


_REPLAY = module.Replay


def rewrite_checkpoint(folder, step, change):
    """Saves checkpoint `step` again with `change` made, with hashes of its own that fit."""
    run = open_run(folder)
    state, history = run.restore(step)
    state = change(state)
    state = state.replace(key=jax.random.key_data(state.key))
    shutil.rmtree(run.folder.checkpoints / str(step))
    hashes = {"sha256": hash_tree(state), "layout": hash_layout(state)}
    with ocp.training.Checkpointer(str(run.folder.checkpoints)) as checkpointer:
        checkpointer.save_checkpointables(
            step, {"state": state}, force=True, custom_metadata={"history": history, **hashes}
        )
    return hashes["sha256"]


def edit_rows(folder, split, step, **values):
    file = Workdir(folder).metrics
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    (row,) = (row for row in rows if (row["split"], row["step"]) == (split, step))
    row |= values
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def nudge(state):
    """One weight moves by one unit in the last place."""
    params = jax.tree.map(np.array, state.params)
    kernel = params["classifier"]["kernel"]
    kernel[3, 2] = np.nextafter(kernel[3, 2], np.float32(2))
    return state.replace(params=params)


def test_a_run_that_nobody_touched_is_verified(trained, capsys):
    assert main(["verify", str(trained), "--segments", "all"]) == 0
    shown = capsys.readouterr().out
    assert shown.endswith("VERIFIED: training gives the same bits again\n")
    certificate = Workdir(trained).read("certificate")
    assert certificate["result"] == "bits" and certificate["problems"] == []
    # Of 50 steps a fifth is 10, at the end of each second epoch; and the last two are kept.
    assert certificate["checkpoints"] == [10, 20, 30, 40, 45, 50]
    ends = [(s["first"], s["last"]) for s in certificate["segments"]]
    assert ends == [(0, 10), (10, 20), (20, 30), (30, 40), (40, 45), (45, 50)]
    # One call an epoch and a validation: 2 rows; one hash.
    assert sum(s["rows"] for s in certificate["segments"]) == 2 * EPOCHS
    assert sum(s["hashes"] for s in certificate["segments"]) == EPOCHS
    assert certificate["steps_replayed"] == 50


def test_stretches_are_drawn_by_the_seed_and_end_at_the_next_hash(trained, monkeypatch):
    monkeypatch.setattr(module, "_check_checkpoints", lambda run: (run.saved.steps, []))
    monkeypatch.setattr(module, "_replay_all", lambda run, stretches, exact: stretches)
    drawn = [
        [(s["first"], s["last"]) for s in verify(trained, segments=2, seed=seed)["segments"]]
        for seed in (1, 1, 2, 3)
    ]
    assert drawn[0] == drawn[1] and len({tuple(d) for d in drawn}) > 1
    assert all(last - first == STEPS_PER_EPOCH for d in drawn for first, last in d)


def test_a_flipped_byte(copied):
    files = [file for file in (copied / "saved" / "20").rglob("*") if file.is_file()]
    file = max(files, key=lambda file: file.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    certificate = verify(copied, segments=0)
    (problem,) = certificate["problems"]
    assert problem.startswith("checkpoint 20 is damaged") and 20 not in certificate["checkpoints"]


def test_a_checkpoint_that_was_written_anew_with_a_hash_of_its_own(copied):
    rewrite_checkpoint(copied, 20, nudge)
    certificate = verify(copied, segments=0)
    expected = "checkpoint 20 is not the state whose hash metrics.jsonl has"
    assert certificate["problems"] == [expected]


@pytest.mark.parametrize(("step", "found"), [(20, (20, 25)), (50, (45, 50))])
def test_a_checkpoint_and_its_hash_in_the_history(step, found, copied):
    """Nothing contradicts it but training: from it on, or up to it."""
    edit_rows(copied, "state", step, sha256=rewrite_checkpoint(copied, step, nudge))
    if step == 50:  # as somebody would who wants better weights
        weights = open_run(copied).restore(50)[0]
        weights = {"params": weights.params, "batch_stats": weights.batch_stats}
        result = Workdir(copied).read("result") | {"params_sha256": hash_tree(weights)}
        Workdir(copied).write("result", result)
    certificate = verify(copied, segments=6)
    failed = [(s["first"], s["last"]) for s in certificate["segments"] if s["outcome"] == "failed"]
    assert failed == [found] and len(certificate["problems"]) == 1
    assert f"{found[0]} to {found[1]}, done again: " in certificate["problems"][0]


def test_other_weights_than_those_of_the_result(copied):
    result = Workdir(copied).read("result") | {"params_sha256": 64 * "0"}
    Workdir(copied).write("result", result)
    (problem,) = verify(copied, segments=0)["problems"]
    assert problem == "checkpoint 50 does not hold the weights of result.json"


def test_an_edited_loss(copied, capsys):
    edit_rows(copied, "train", 30, loss=0.5)  # of no stretch that is done again
    (problem,) = verify(copied, segments=0)["problems"]
    where = "a row after step 25 and up to step 30 is not the one that was written"
    assert problem == f"metrics.jsonl: {where}"
    # In a stretch it is found by itself, whatever hashes of the rows say.
    edit_rows(copied, "train", 25, loss=0.5)
    assert main(["verify", str(copied), "--segments", "6"]) == 1
    shown = capsys.readouterr().out
    assert "PROBLEM: steps 20 to 25, done again: train loss at step 25 is " in shown
    assert shown.endswith("NOT VERIFIED\n")


def test_an_edited_validation_differs_from_what_the_checkpoints_have_of_it(copied):
    edit_rows(copied, "validation", 15, accuracy=0.99)
    problems = verify(copied, segments=0)["problems"]
    expected = [f"metrics.jsonl and checkpoint {s} differ in" for s in (20, 30, 40, 45, 50)]
    assert [p[: len(e)] for p, e in zip(problems[1:], expected, strict=True)] == expected


def test_on_another_machine_losses_decide(copied, monkeypatch):
    """Other bits within the tolerance, told as such; and beyond it."""
    sessions = Workdir(copied).read("environment")
    sessions[0]["threads"] += 1
    Workdir(copied).write("environment", sessions)
    loss = open_run(copied).rows["train", 5]["loss"]
    edit_rows(copied, "train", 5, loss=loss * (1 + 1e-6))
    edit_rows(copied, "state", 5, sha256=64 * "0")
    monkeypatch.setattr(module, "_check_rows", lambda run: [])
    monkeypatch.setattr(module, "_stretches", lambda run, whole, to_checkpoints: [(0, 5)])
    certificate = verify(copied)
    assert certificate["result"] == "losses" and not certificate["problems"]
    (segment,) = certificate["segments"]
    assert segment["largest_difference"] == pytest.approx(1e-6, rel=1e-3)
    assert "other bits, losses differ by at most 1.0e-06" in format_certificate(certificate)
    assert "VERIFIED within the tolerance" in format_certificate(certificate)
    edit_rows(copied, "train", 5, loss=loss * 1.01)
    certificate = verify(copied)
    assert certificate["result"] == "failed"
    assert "a relative difference of 9.9e-03" in certificate["problems"][0]


def test_what_cannot_be_verified_is_told_in_one_line(tmp_path, copied):
    with pytest.raises(UserError, match="holds no run: config.json is missing"):
        verify(tmp_path / "nothing")
    with open(Workdir(copied).metrics, "a") as file:
        file.write('{"split": "train", "step": 50, "epoch": 4}\n')
    with pytest.raises(UserError, match=r"metrics.jsonl is damaged: a row without loss"):
        verify(copied)
    with open(Workdir(copied).metrics, "a") as file:
        file.write("torn\n")
    with pytest.raises(UserError, match=r"metrics.jsonl is damaged: 1 lines are no rows"):
        verify(copied)
    shutil.rmtree(copied / "saved")
    Workdir(copied).metrics.unlink()
    with pytest.raises(UserError, match="has no checkpoint yet"):
        verify(copied)
