"""What a run says and leaves, and how it is extended: short runs of a tiny network."""

import json
import math
import os
import re
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
from sklearn.datasets import load_digits

from flaxcnn.commands import train as train_command
from flaxcnn.errors import UserError
from flaxcnn.training import (
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    run,
    train,
)
from flaxcnn.training import sessions as sessions_module
from flaxcnn.training.extend import extend
from flaxcnn.training.inference import load_run
from flaxcnn.training.logger import read_rows
from flaxcnn.training.sessions import compare_sessions, read_sessions
from flaxcnn.training.stop_signal import StopSignal
from flaxcnn.training.workdir import Workdir


def make_config(epochs: int = 3, **fields) -> Config:
    return Config(
        model=ModelConfig("mnist_mlp_512", kwargs={"hidden": (4,)}),
        data=DataConfig("digits", batch_size=256),
        epochs=epochs,
        steps_per_call=2,
        **fields,
    )


@pytest.fixture
def no_pictures(monkeypatch):
    """They take longer than these runs."""
    monkeypatch.setattr("flaxcnn.training.report._draw", lambda *arguments: None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Workdir, output and result of a finished run in a folder with an awkward name."""
    folder = tmp_path_factory.mktemp("runs") / "run [lr=0.1]"
    with pytest.MonkeyPatch.context() as patch:
        lines = []
        patch.setattr("builtins.print", lambda *words, end="\n", **_: lines.append((words, end)))
        patch.setattr("tqdm.tqdm.write", lambda line, **_: lines.append(((line,), "\n")))
        result = run(make_config(), folder)
    text = "".join(" ".join(map(str, words)) + end for words, end in lines)
    return Workdir(folder), text, result


def test_the_run_says_what_it_is_and_each_epoch_what_it_came_to(finished):
    workdir, text, _ = finished
    lines = text.split("\n")
    assert lines[0] == "mnist_mlp_512: 310 parameters"  # 64 x 4 + 4 + 4 x 10 + 10
    assert lines[1] == "digits: 1,293 train, 360 test, 144 validation images, 8x8x1, of 10 classes"
    assert lines[2].startswith("8 x cpu, ") and lines[2].endswith("; 3 epochs, of 5 steps")
    assert lines[3] == "compiling ..."
    assert "\r" not in text
    rows = read_rows(workdir)
    for epoch in (1, 2, 3):
        train = [r for r in rows if r["split"] == "train" and epoch - 1 < r["epoch"] <= epoch]
        assert [r["step"] - 5 * (epoch - 1) for r in train] == [2, 4, 5]
        loss, accuracy = (
            np.average([r[key] for r in train], weights=[2, 2, 1]) for key in ("loss", "accuracy")
        )
        (found,) = (r for r in rows if r["split"] == "validation" and r["epoch"] == epoch)
        assert lines[3 + epoch].startswith(
            f"epoch {epoch}/3: loss {loss:.4f} · accuracy {accuracy:.4f} · validation "
            f"loss {found['loss']:.4f} · accuracy {found['accuracy']:.4f} · top5_accuracy "
        )
    assert re.search(r" images/s( · data \d+ %)? · 00:0", lines[5]) and " left" not in lines[6]
    timed = ["images_per_second" in r for r in rows if r["split"] == "train"]
    assert timed == [False, True, False] + 6 * [True]  # calls of 2 and of 1 steps compile once each


def test_the_end_says_which_checkpoint_was_measured(finished, capsys):
    workdir, text, result = finished
    rows = [row for row in read_rows(workdir) if row["split"] == "validation"]
    best = max(rows, key=lambda row: (row["accuracy"], row["step"]))
    loaded = load_run(workdir.path, "best")
    means = loaded.evaluate("test").means
    assert loaded.step == best["step"] == result["best"]["step"]
    assert result["best"]["validation_accuracy"] == best["accuracy"]
    assert result["best"]["accuracy"] == pytest.approx(means["accuracy"])
    assert "measured: the last step, 15" in text
    # Another was best, as far as the files say.
    result["best"] |= {"step": 10, "accuracy": 0.5, "loss": 0.25}
    workdir.write("result", result)
    run(make_config(), workdir.path)
    shown = capsys.readouterr().out
    value = best["accuracy"]
    assert (
        f"the last step, 15; the best by validation accuracy ({value:.4f}) is step 10: test "
        "accuracy 0.5000 · loss 0.2500\n"
    ) in shown


def test_what_was_deleted_is_made_again(finished, capsys):
    workdir, *_ = finished
    names = ("curves.png", "confusion_matrix.png", "predictions.png")
    files = [workdir.path / name for name in names]
    before = {file: file.read_bytes() for file in files}
    with np.load(workdir.examples) as saved:
        examples = dict(saved)
    np.testing.assert_array_equal(examples["index"], np.arange(360))
    for file in (*files, workdir.examples):
        file.unlink()
    train(make_config(), workdir.path)
    said = capsys.readouterr().out
    assert (
        said == "made again: predictions.npz, curves.png, confusion_matrix.png, predictions.png\n"
    )
    assert {file: file.read_bytes() for file in files} == before
    with np.load(workdir.examples) as saved:
        for name, array in examples.items():
            np.testing.assert_array_equal(saved[name], array)
    train(make_config(), workdir.path)
    assert capsys.readouterr().out == ""


def test_predictions_name_the_files_of_a_folder(tmp_path):
    digits = load_digits()
    for i in range(40):
        folder = tmp_path / "data" / f"class{digits.target[i] % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{i:02}.png"), np.round(digits.images[i] * 15).astype(np.uint8))
    config = make_config(epochs=1)
    config.data.source, config.data.batch_size = f"folder:{tmp_path / 'data'}", 16
    config.data.eval_batch_size = 8
    train(config, tmp_path / "run")
    with np.load(tmp_path / "run" / "predictions.npz") as saved:
        for file, label in zip(saved["path"], saved["true_label"], strict=True):
            assert (tmp_path / "data" / file).is_file()
            assert label == digits.target[int(Path(str(file)).stem)] % 2


def test_more_epochs_keep_the_final_rate_and_can_be_interrupted(tmp_path, no_pictures):
    config = make_config(2, optimizer=OptimizerConfig(name="adam", learning_rate=0.01))
    config.steps_per_call = 5  # an epoch

    def added(folder: Path, **callbacks):
        train(config, folder)
        extend(config, folder, 2)
        return train(config, folder, **callbacks)

    whole = added(tmp_path / "whole")
    assert (whole["steps"], whole["extended"]) == (20, [2])
    rows = [row for row in read_rows(Workdir(tmp_path / "whole")) if row["split"] == "train"]
    rates = [row["learning_rate"] for row in rows]
    # Cosine over the 10 steps of two epochs; the rate of the last, of index 9, is kept.
    last = 0.01 * (1 + math.cos(math.pi * 9 / 10)) / 2
    np.testing.assert_allclose(rates[1:], 3 * [last], rtol=1e-5)
    assert added(tmp_path / "parts", stop=lambda: True) is None
    extend(config, tmp_path / "parts", 2)  # the same command again adds nothing
    assert train(config, tmp_path / "parts") == whole
    extend(config, tmp_path / "parts", 1)
    for epochs, line in [
        (3, "--extend 3: the run in .*parts is not finished"),
        (0, "at least 1 epoch"),
    ]:
        with pytest.raises(UserError, match=line):
            extend(config, tmp_path / "parts", epochs)
    with pytest.raises(UserError, match="nowhere holds no run yet"):
        extend(config, tmp_path / "nowhere", 1)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"early_stopping": 2}, "early_stopping=2 needs a validation split: set data.validation"),
        (
            {"optimizer": OptimizerConfig(schedule=ScheduleConfig("plateau"))},
            "optimizer.schedule.name=plateau needs a",
        ),
    ],
)
def test_what_needs_validation_is_refused_without(fields, line, tmp_path):
    config = make_config(**fields)
    config.data.validation = 0.0
    with pytest.raises(UserError, match=line):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_sessions_are_kept_and_what_changed_is_said(tmp_path, monkeypatch, capsys, no_pictures):
    config = make_config(2)
    assert train(config, tmp_path, stop=lambda: True) is None
    (old,) = read_sessions(Workdir(tmp_path))
    (tmp_path / "environment.json").write_text(json.dumps(old))  # as older versions wrote it
    other = json.loads(json.dumps(old))
    other["versions"]["jaxlib"], other["threads"] = "0.0.1", 99
    other["devices"]["count"] = 3
    monkeypatch.setattr(sessions_module, "environment", lambda: other)
    assert train(config, tmp_path) is not None
    said = capsys.readouterr()
    jaxlib, threads = old["versions"]["jaxlib"], old["threads"]
    assert (
        f"WARNING: since the session before, devices 8 x cpu -> 3 x cpu; CPU threads {threads} -> "
        f"99; jaxlib {jaxlib} -> 0.0.1: the bits may differ from those of an uninterrupted run\n"
    ) in said.err
    assert "resuming from step 2 of 10" in said.out
    kept = read_sessions(Workdir(tmp_path))
    assert [session["threads"] for session in kept] == [threads, 99]
    assert compare_sessions(kept[1], kept[1]) == []


def test_unreadable_checkpoints_end_a_run_in_one_line(tmp_path):
    config = make_config(2)
    assert train(config, tmp_path, stop=lambda: True) is None
    (tmp_path / "checkpoints").mkdir()  # as older versions left it by looking for some
    for file in (tmp_path / "saved").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(UserError, match=r"no checkpoint in .*saved can be read \(2\)"):
        train(config, tmp_path)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_stopped_command_says_how_by_its_status(number, status, tmp_path, monkeypatch):
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]

    def run(config, workdir, started):
        with StopSignal() as inner:  # that of the run, within the command's
            os.kill(os.getpid(), number)
            return None if inner.requested else {}

    monkeypatch.setattr("flaxcnn.training.loop.run", run)
    assert train_command.train(["--workdir", str(tmp_path)]) == status
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
