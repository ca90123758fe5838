"""A run whose data has changed since it began, has been moved, or is gone."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flaxcnn.commands.main import main
from flaxcnn.errors import UserError
from flaxcnn.training import Config, DataConfig, ModelConfig, train
from flaxcnn.training.experiment import make_experiment
from flaxcnn.training.facts import Facts
from flaxcnn.training.inference import load_run
from flaxcnn.training.workdir import Workdir

CLASSES = ("ant", "bee", "cat")


def write(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(path)


def make_config(source, **data) -> Config:
    return Config(
        model=ModelConfig(name="mnist_mlp_512", kwargs={"hidden": (8,)}),
        data=DataConfig(source=f"folder:{source}", **{"batch_size": 16} | data),
        epochs=1,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with `photos`, 60 images of three classes, and `run`, a finished run on it."""
    root = tmp_path_factory.mktemp("trained")
    for i in range(60):
        write(root / "photos" / CLASSES[i % 3] / f"{i:02}.png", 80 * (i % 3) + i)
    train(make_config(root / "photos"), root / "run")
    return root


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of `trained`, whose run looks for its photos there, and has not ended."""
    shutil.copytree(trained, tmp_path / "x")
    workdir = Workdir(tmp_path / "x" / "run")
    config = workdir.read("config")
    config["data"]["source"] = f"folder:{tmp_path / 'x' / 'photos'}"
    workdir.write("config", config)
    (workdir.path / "result.json").unlink()
    return tmp_path / "x"


def resume(root: Path, source: Path | None = None, **data):
    """What a resumed run starts with."""
    config, workdir = make_config(source or root / "photos", **data), Workdir(root / "run")
    with workdir.claim(config):
        return make_experiment(config, workdir)


def lines(root: Path) -> Iterator[str]:
    """What resume and evaluate refuse the data with; it has to be the same."""
    for function in (resume, lambda root: load_run(root / "run").evaluate("test")):
        with pytest.raises(UserError) as caught:
            function(root)
        line = str(caught.value)
        assert "\n" not in line
        yield line.partition("/photos is not what this run was trained on: ")[2] or line


def test_a_class_that_is_new_gone_or_renamed(run):
    write(run / "photos" / "aardvark" / "0.png", 3)
    assert set(lines(run)) == {"class 'aardvark' is new"}
    shutil.rmtree(run / "photos" / "aardvark")
    (run / "photos" / "bee").rename(run / "photos" / "wasp")
    assert set(lines(run)) == {"class 'wasp' is new; class 'bee' is gone"}
    (run / "photos" / "wasp").rename(run / "bee")
    assert set(lines(run)) == {"class 'bee' is gone"}


def test_files_that_are_gone(run):
    splits = json.loads((run / "run" / "splits.json").read_text())
    for name in list(splits["train"])[:10]:
        (run / "photos" / name).unlink()
    first = next(iter(splits["train"]))
    assert set(lines(run)) == {f"10 files fewer in train, first missing: {first}"}
    shutil.rmtree(run / "photos")
    for line in lines(run):
        assert "is not there; where it has been moved to is said by data.source" in line


def test_a_new_file_moves_no_split(run, capsys):
    before = resume(run)
    measured = load_run(run / "run").evaluate("test")
    write(run / "photos" / "ant" / "00a.png", 9)
    capsys.readouterr()
    after = resume(run)
    said = f"folder:{run}/photos: 1 new and not in this run: ant/00a.png\n"
    assert capsys.readouterr().err == said
    assert after.facts == before.facts
    for name, split in before.dataset.splits.items():
        for ours, theirs in zip(
            after.dataset.splits[name].load(slice(None)), split.load(slice(None)), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)
    again = load_run(run / "run").evaluate("test")
    assert again.means == measured.means
    np.testing.assert_array_equal(again.arrays["true_label"], measured.arrays["true_label"])
    # Without the record the split would have moved: files of test are then in train.
    (run / "run" / "splits.json").unlink()
    assert set(lines(run)) == {"its files have changed"}
    (run / "photos" / "ant" / "00a.png").unlink()
    assert resume(run).facts == before.facts


def test_a_list_of_files_that_was_edited(run):
    file = run / "run" / "splits.json"
    file.write_text(file.read_text().replace('"test"', '"tests"'))
    assert set(lines(run)) == {f"{file} is not what the run has written"}


def test_a_moved_folder_is_the_same_data(run, capsys, monkeypatch):
    before = load_run(run / "run").evaluate("test").means
    (run / "photos").rename(run / "moved")
    command = ["evaluate", "--workdir", str(run / "run"), "--json"]
    assert main(command) == 2
    assert "--source to evaluate" in capsys.readouterr().err
    assert main([*command, "--source", f"folder:{run}/moved"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert {name: result[name] for name in before} == before
    monkeypatch.chdir(run)
    assert resume(run, Path("moved")).config.data.source == "folder:moved"
    # It stays found, from any folder.
    assert Workdir("run").config().data.source == f"folder:{run}/moved"
    monkeypatch.chdir("/")
    assert load_run(run / "run").evaluate("test").means == before
    with pytest.raises(UserError, match=r"another config \(data\.batch_size: 16 -> 8\)"):
        resume(run, run / "moved", batch_size=8)
    shutil.copytree(run / "moved", run / "other")
    (run / "other" / "ant" / "00.png").unlink()
    with pytest.raises(UserError, match=r"folder:.*/other is not what .* 1 file fewer in \w+, fir"):
        resume(run, run / "other")
    with pytest.raises(UserError, match="there is no folder"):
        resume(run, run / "nowhere")
    digits = dataclasses.replace(make_config(""), data=DataConfig(source="digits", batch_size=16))
    with pytest.raises(UserError, match="digits is not what .*: that was a folder"):
        resume_config(run, digits)


def resume_config(root: Path, config: Config):
    with Workdir(root / "run").claim(config):
        pass


def test_another_kind_of_source_is_no_moved_folder(run):
    with pytest.raises(
        UserError, match="digits is not what .*: classes '0', .* '4' and 5 more are"
    ):
        load_run(run / "run").evaluate("test", source="digits")
    with pytest.raises(UserError, match="data.source must be digits, .*, got 'photos'"):
        load_run(run / "run").evaluate("test", source="photos")


def test_predict_needs_no_data(run, capsys):
    image = run / "image.png"
    write(image, 9)
    shutil.rmtree(run / "photos")
    assert main(["predict", "--workdir", str(run / "run"), "--json", str(image)]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert {entry["class"] for entry in result["top"]} == set(CLASSES)


def test_the_record_of_an_older_version_will_do(run):
    """Its split is found again as it was made then, and counts are compared."""
    measured = load_run(run / "run").evaluate("test").means
    workdir = Workdir(run / "run")
    facts = workdir.read("run")
    workdir.write("run", {k: v for k, v in facts.items() if k != "data_version"})
    (run / "run" / "splits.json").unlink()
    assert load_run(run / "run").evaluate("test").means == measured
    write(run / "photos" / "ant" / "x.png", 9)
    assert set(lines(run)) == {"train has 43 images, it had 42"}
    (run / "photos" / "ant" / "x.png").rename(run / "photos" / "ant" / "a.txt")
    (run / "photos" / "ant" / "00.png").rename(run / "photos" / "bee" / "00.png")
    assert set(lines(run)) == {"train has 13 images of class 'ant', it had 14"}
    write(run / "photos" / "aardvark" / "0.png", 3)
    assert set(lines(run)) == {"class 'aardvark' is new"}


def test_other_shapes_are_named(run):
    workdir = Workdir(run / "run")
    workdir.write("run", workdir.read("run") | {"image_shape": [4, 5, 1]})
    with pytest.raises(UserError, match="images are 4x4x1, they were 4x5x1$"):
        resume(run)


def test_facts_of_another_version(run):
    workdir = Workdir(run / "run")
    facts = workdir.read("run")
    assert dataclasses.asdict(Facts.read(workdir)) == facts
    workdir.write("run", facts | {"quantiles": []})
    with pytest.raises(UserError, match=r"run.json was written by another .* a field quantiles$"):
        Facts.read(workdir)
    workdir.write("run", {k: v for k, v in facts.items() if k != "mean"})
    with pytest.raises(UserError, match=r"run.json is damaged: it has no field mean$"):
        load_run(run / "run")


def test_a_finished_run_is_not_taken_for_one_on_other_data(trained, tmp_path):
    write(tmp_path / "photos" / "ant" / "0.png", 0)
    write(tmp_path / "photos" / "bee" / "0.png", 0)
    with pytest.raises(UserError, match="class 'cat' is gone"):
        train(make_config(tmp_path / "photos"), trained / "run")
    shutil.copytree(trained / "photos", tmp_path / "moved")
    result = train(make_config(tmp_path / "moved"), trained / "run")
    assert result == Workdir(trained / "run").read("result")


def test_what_a_start_that_failed_left_is_no_record(tmp_path):
    workdir = Workdir(tmp_path)
    workdir.write("splits", {"train": {"a/0.png": 3}})
    config = Config(model=ModelConfig(name="mnist_mlp_512", kwargs={"hidden": (8,)}))
    with workdir.claim(config):
        make_experiment(config, workdir)
    assert workdir.record().files == {} and workdir.record().version == "digits"
