"""The commands on one short run: one process of each as a user starts it, the rest in this one."""

import json
import os
import re
import subprocess
from pathlib import Path

import cv2
import jax
import jax.export
import numpy as np
import pytest
from sklearn.datasets import load_digits

import flaxcnn
from flaxcnn.commands.main import main
from flaxcnn.errors import UserError
from flaxcnn.training.inference import load_run
from flaxcnn.training.predictor import Predictor
from flaxcnn.training.publish import make_files
from flaxcnn.weights import convert, read_tensors

pytestmark = pytest.mark.slow

CLI = ("-m", "flaxcnn")


@pytest.fixture
def train(capsys):
    """`flaxcnn train` within this process: (arguments, ...) -> (exit status, its stderr)."""

    def run(*arguments) -> tuple[int, str]:
        return main(["train", *map(str, arguments)]), capsys.readouterr().err

    return run


@pytest.fixture(scope="module")
def workdir(run_command, tmp_path_factory) -> Path:
    """A finished run of 4 epochs on digits."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    finished = run_command("train.py", "--workdir", folder, "--config.epochs=4")
    assert finished.returncode == 0, finished.stderr
    return folder


def test_evaluate_uses_the_best_checkpoint_and_agrees_with_scikit_learn(
    workdir, run_command, capsys
):
    finished = run_command(*CLI, "evaluate", "--workdir", workdir, "--json")
    result = json.loads(finished.stdout)
    validation = [
        row
        for row in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
        if row["split"] == "validation"
    ]
    best = max(validation, key=lambda row: (row["accuracy"], row["step"]))
    assert result["step"] == best["step"]
    assert result["report"]["images"] == 360
    assert main(["evaluate", "--workdir", str(workdir), "--split", "validation", "--json"]) == 0
    on_validation = json.loads(capsys.readouterr().out)
    assert on_validation["accuracy"] == pytest.approx(best["accuracy"])
    assert on_validation["loss"] == pytest.approx(best["loss"], rel=1e-5)


def test_the_last_checkpoint_gives_the_result_of_training(workdir, capsys):
    assert main(["evaluate", str(workdir), "--checkpoint", "last"]) == 0  # as --workdir
    said = capsys.readouterr().out
    trained = json.loads((workdir / "result.json").read_text())
    assert f"test accuracy {trained['accuracy']:.4f} · 360 images" in said
    assert "macro average" in said


def test_evaluate_with_views_and_at_another_size(workdir, capsys):
    def evaluate(*arguments):
        status = main(["evaluate", "--workdir", str(workdir), *arguments])
        return status, *capsys.readouterr()

    status, out, _ = evaluate("--views", "shift=1,flip", "--json")
    with_views = json.loads(out)
    assert status == 0 and with_views["views"] == [["shift", 1], ["flip"]]
    plain = json.loads(evaluate("--views", "none", "--json")[1])
    assert plain["views"] == [] and plain["image_size"] == [8, 8]
    assert plain == json.loads(evaluate("--json")[1])
    assert with_views["loss"] != plain["loss"]
    status, out, _ = evaluate("--views", "flip", "--image-size", "8,8")
    assert status == 0 and out.startswith("best checkpoint, step ")
    assert "test split, 8x8 pixels, views flip\n" in out
    for arguments, line in [
        (["--views", "flip,shift=x"], "views[1] ('shift', 'x'): pixels must be a whole number"),
        (["--views", "shift"], "views[0] ('shift',): the settings of shift are: pixels"),
        (["--image-size", "160"], "--image-size must be HEIGHT,WIDTH, got '160'"),
        (["--image-size", "160,160"], "image_size: the network cannot take 160x160x1 images: "),
        (["--resize", "pad"], "resize needs image_size"),
    ]:
        status, _, said = evaluate(*arguments)
        assert status == 2 and said.startswith(f"flaxcnn evaluate: {line}")
        assert said.count("\n") == 1


def test_visualize_augment_draws_a_config(capsys, tmp_path):
    file, out = tmp_path / "photo.png", tmp_path / "a.png"
    cv2.imwrite(str(file), np.full((40, 60, 3), (30, 200, 10), np.uint8))
    (tmp_path / "config.py").write_text(
        "from flaxcnn.training import Config, DataConfig\n"
        "def get_config():\n"
        "    return Config(data=DataConfig(augment=[['flip']], image_size=(8, 8), channels=1))\n"
    )
    command = ["visualize", "augment", "--image", str(file), "--out", str(out), "--config"]
    assert main([*command, str(tmp_path / "config.py"), "--samples", "2"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    picture = cv2.imread(str(out)).astype(int)
    assert (picture.max(-1) == picture.min(-1)).all()  # as the run would see it: grey
    assert main([*command, "digits"]) == 2  # one that comes with flaxcnn
    said = capsys.readouterr().err
    assert said == "flaxcnn visualize: there is nothing to draw: the config has no data.augment\n"


def test_predict_names_real_digits(workdir, run_command, tmp_path, capsys):
    digits = load_digits()
    files = []
    for i in range(10):
        files.append(str(tmp_path / f"{i}.png"))
        cv2.imwrite(files[-1], np.round(digits.images[i] * 255 / 16).astype(np.uint8))
    finished = run_command(*CLI, "predict", "--workdir", workdir, "--top", 3, "--json", *files)
    results = json.loads(finished.stdout)
    assert [result["image"] for result in results] == files
    right = 0
    for result, target in zip(results, digits.target[:10], strict=True):
        probabilities = [entry["probability"] for entry in result["top"]]
        assert len(probabilities) == 3
        assert probabilities == sorted(probabilities, reverse=True)
        assert 0 < sum(probabilities) <= 1 + 1e-5
        right += result["top"][0]["class"] == str(target)
    assert right >= 9
    assert main(["predict", "--workdir", str(workdir), files[0]]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"{files[0]}\n")
    assert shown.count("%") == 5


def write_digits(folder: Path, count: int) -> None:
    folder.mkdir()
    for i, image in enumerate(load_digits().images[:count]):
        cv2.imwrite(str(folder / f"{i}.png"), np.round(image * 255 / 16).astype(np.uint8))


def test_predict_takes_folders_and_skips_bad_files(workdir, tmp_path, capsys):
    write_digits(tmp_path / "a", 3)
    write_digits(tmp_path / "a" / "b", 2)
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / "a" / "1.png").write_bytes(b"no image either")
    nowhere, command = str(tmp_path / "nowhere.png"), ["predict", "--workdir", str(workdir)]
    before = sorted(workdir.rglob("*"))
    assert main([*command, "--json", nowhere, str(tmp_path / "a"), nowhere]) == 1
    out, said = capsys.readouterr()
    names = ["a/0.png", "a/2.png", "a/b/0.png", "a/b/1.png"]
    assert [result["image"] for result in json.loads(out)] == [str(tmp_path / n) for n in names]
    assert said.startswith("flaxcnn predict: skipped 3 of 7 files:\n")
    assert said.count(f"  {nowhere}: No such file") == 2 and "a/1.png" in said
    assert sorted(workdir.rglob("*")) == before  # a reader changes nothing
    for arguments, line in [
        ([nowhere, nowhere], "No such file or directory (and 1 more"),
        (["--top", "0", nowhere], "--top must be at least 1, got 0"),
        ([str(workdir / "tensorboard")], "tensorboard holds no images"),
    ]:
        assert main([*command, *arguments]) == 2
        said = capsys.readouterr().err
        assert line in said and said.count("\n") == 1


def test_predict_computes_batches_of_one_size(workdir, tmp_path):
    write_digits(tmp_path / "a", 7)
    (tmp_path / "a" / "2.png").write_bytes(b"")
    files = [str(tmp_path / "a" / f"{i}.png") for i in range(7)]
    run = load_run(workdir)
    run.config.data.eval_batch_size = 4
    results = dict(run.predictor.predict(files))
    assert list(results) == files
    assert len(run.predictor._compiled) == 1  # the last batch is padded
    assert isinstance(results.pop(files[2]), UserError)
    again = flaxcnn.load(workdir, batch_size=4)
    np.testing.assert_array_equal(dict(again.predict(files))[files[0]], results[files[0]])
    for file, probabilities in results.items():
        alone = run.predictor(run.predictor.read(file)[None])[0]
        np.testing.assert_allclose(probabilities, alone, rtol=1e-4, atol=1e-6)


def test_a_published_run_answers_as_the_run(workdir, tmp_path):
    """`flaxcnn push` writes what `flaxcnn.load` reads: names, layout, normalisation, classes."""
    run = load_run(workdir)
    for name, content in make_files(run, "user/digits").items():
        (tmp_path / name).write_bytes(content)
    published = flaxcnn.load(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    np.testing.assert_allclose(published(images), run.predictor(images), atol=1e-6)
    assert published.task.class_names == tuple(run.facts.class_names)
    assert published.image_shape == run.predictor.image_shape == (8, 8, 1)


def test_predict_says_where_the_network_gives_no_numbers(workdir, tmp_path, capsys, monkeypatch):
    write_digits(tmp_path / "a", 1)
    broken = np.full((1, 10), np.nan, np.float32)
    monkeypatch.setattr(Predictor, "__call__", lambda self, images: broken)
    command = ["predict", "--workdir", str(workdir), str(tmp_path / "a")]
    assert main(command) == 0
    assert "no answer: the network's output for it is not finite" in capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["top"] == []


def test_predict_refuses_another_size_without_resize(workdir, tmp_path, capsys):
    photo = str(tmp_path / "photo.jpg")
    cv2.imwrite(photo, np.zeros((40, 60, 3), np.uint8))
    command = ["predict", "--workdir", str(workdir), photo]
    assert main(command) == 2
    assert "photo.jpg is 60x40 and the run's images are 8x8" in capsys.readouterr().err
    assert main([*command, "--resize", "crop"]) == 0


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--config.optimizer.learning_rat=1"], "did you mean optimizer.learning_rate?"),
        (["--config.epochs=many"], "flag --config.epochs=many: invalid literal for int()"),
        (["--config.epochs=0"], "epochs must be at least 1, got 0"),
        (["--config.model.name=digits_cn"], "unknown model 'digits_cn': did you mean digits_cnn"),
        (["--config.model.kwargs.colour=1"], "model 'digits_cnn' has no argument 'colour'"),
        (["--config.model.kwargs.num_classes=7"], "the network has 7 outputs and the data set 10"),
        (["--config.model.name=cats_dogs_cnn"], "got 8x8x1"),
        (["--config.data.source=folder:nowhere"], "nowhere"),
        (["--config.data.batch_size=5000"], "data.batch_size"),
        (["--config.optimizer.name=adamm"], "adamm"),
        (["--config.optimizer.kwargs.beta=1"], "beta"),
        (["--config.optimizer.schedule.name=cosin"], "optimizer.schedule.name"),
        (["--config.optimizer.schedule=cosine"], "schedule is now optimizer.schedule.name"),
        (["--config.loss.name=l1"], "loss.name"),
        (["--config", "nowhere.py"], "nowhere.py: no such file"),
        (["digit"], "no config is called digit: did you mean digits"),
        (["--config"], "--config needs a name or a file"),
        (["digits", "mnist_cnn"], "two configs are given, 'digits' and 'mnist_cnn'"),
        (["batch_size"], "batch_size is a study: `flaxcnn study batch_size`"),
        (["photos"], "there is no folder photos; --config.data.source=folder:PATH says where"),
        (["--workdir", "/proc/nothing/run"], "cannot write to --workdir"),
        (["--config.model.kwargs.x", "1"], "unexpected argument '1'"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments, line, train, tmp_path):
    workdir = tmp_path / "run"
    status, said = train("--workdir", workdir, *arguments)
    assert status == 2, said
    assert line in said
    assert said.startswith("flaxcnn train: ")
    assert said.count("\n") == 1
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (
            "from flaxcnn.training import Config\nget_config = lambda: Config(epoch=3)",
            "did you mean epochs?",
        ),
        ("get_config = lambda: {}", "get_config() must return a flaxcnn Config, got dict"),
        ("x = 3", "get_config"),
        ("def", "SyntaxError"),
    ],
)
def test_a_wrong_config_file_is_one_line(content, line, train, tmp_path):
    (tmp_path / "config.py").write_text(content)
    status, said = train("--config", tmp_path / "config.py", "--workdir", tmp_path / "r")
    assert status == 2
    assert line in said
    assert said.count("\n") == 1


def test_a_mistake_can_be_corrected_in_the_same_workdir(train, tmp_path):
    workdir = tmp_path / "run"
    status, said = train("--workdir", workdir, "--config.optimizer.name=adamm")
    assert status == 2 and "adamm" in said
    status, said = train("--workdir", workdir, "--config.epochs=2")
    assert status == 0, said
    assert (workdir / "result.json").exists()


def test_no_space_left(run_command, tmp_path):
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", tmp_path], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        failed = run_command("train.py", "--workdir", tmp_path / "run", "--config.epochs=2")
        assert failed.returncode == 2
        assert "no space left on the disk of --workdir" in failed.stderr
        assert "Traceback" not in failed.stderr
        assert not list(tmp_path.glob("run/saved/*"))
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_evaluate_names_what_is_missing(capsys, tmp_path):
    assert main(["evaluate"]) == 2 and "--workdir RUN is missing" in capsys.readouterr().err
    assert main(["evaluate", "--workdir", str(tmp_path)]) == 2
    assert capsys.readouterr().err.endswith("holds no run: config.json is missing\n")


def test_list(capsys):
    assert main(["list", "lenet5*"]) == 0
    assert capsys.readouterr().out.split() == ["lenet5_1998", "lenet5_dense"]
    assert main(["list", "--verbose", "mnist_cnn_220k"]) == 0
    assert "220,234" in capsys.readouterr().out
    assert main(["list", "--verbose", "resnet50"]) == 0
    (row,) = re.findall("^resnet50 .*", capsys.readouterr().out, re.MULTILINE)
    for part in ("25,557,032", "53,120", "4,089,184,256", "224x224x3", "He et al.", "(2015)"):
        assert part in row
    assert main(["list", "alexnet99"]) == 2
    assert "did you mean alexnet" in capsys.readouterr().err
    assert main(["list", "optimizers", "adam"]) == 0
    assert "b2=0.999" in capsys.readouterr().out


def test_doctor(run_command):
    finished = run_command(*CLI, "doctor")
    assert finished.returncode == 0
    for topic in ("jaxlib", "CPU threads", "jax_threefry_partitionable", "self-test"):
        assert topic in finished.stdout


def test_reproduce(run_command):
    finished = run_command(*CLI, "reproduce")
    assert finished.returncode == 0, finished.stdout
    assert finished.stdout.strip().endswith("\nreproduced")


def test_a_closed_pipe_is_no_error(command_env):
    finished = subprocess.run(
        "python -m flaxcnn list | true",
        shell=True,
        env=command_env | {"PATH": f"{os.path.dirname(os.sys.executable)}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert finished.stderr == ""


def test_export_writes_a_page_of_the_run(workdir, tmp_path, capsys):
    page = tmp_path / "digits.html"
    assert main(["export", str(workdir), str(page)]) == 0
    assert capsys.readouterr().out.startswith(f"{page}: 0.")
    text = page.read_text()
    assert "digits_cnn: run" in text
    samples = re.search(r' id="sampleImages">(.*?)</script>', text)
    assert [x["label"] for x in json.loads(samples[1])] == list("0123456789")
    for arguments, line in [
        ([workdir, "digits.tflite"], "digits.tflite: a network is exported to .html, .stablehlo, "),
        ([workdir, "no/page.html"], "no/page.html: there is no folder no"),
        ([workdir, "page.html", "--layout", "timm"], "--layout is not for .html files"),
        ([workdir, "x.safetensors", "--layout", "timm"], "timm has no digits_cnn: "),
        ([tmp_path, "page.html"], f"{tmp_path} holds no run"),
    ]:
        assert main(["export", *map(str, arguments)]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"flaxcnn export: {line}") and said.count("\n") == 1


def test_exported_files_hold_the_network_of_the_run(workdir, tmp_path, capsys):
    network, weights = tmp_path / "digits.stablehlo", tmp_path / "digits.safetensors"
    assert main(["export", str(workdir), str(network)]) == 0
    said = capsys.readouterr().out
    assert said.endswith("MB, images uint8 [N, 8, 8, 1] in, probabilities out\n")
    images = np.round(load_digits().images[:7, ..., None] * 255 / 16).astype(np.uint8)
    exported = jax.export.deserialize(bytearray(network.read_bytes()))
    run = load_run(workdir)
    logits = run.model.apply(run.variables, run.preprocessing(images), train=False)
    np.testing.assert_allclose(exported.call(images), jax.nn.softmax(logits), atol=1e-6)
    assert main(["export", str(workdir), str(weights)]) == 0
    variables = convert("digits_cnn", read_tensors(weights), "flaxcnn")
    jax.tree.map(np.testing.assert_array_equal, variables["params"], run.variables["params"])


def test_benchmark_measures_each_engine_in_a_process(workdir, capsys):
    assert main(["benchmark", str(workdir), "--seconds", "0.01", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    rows = {row["engine"].split(" ")[0].rstrip(","): row for row in result["rows"]}
    assert {"flaxcnn", "jax"} <= rows.keys()
    for row in rows.values():
        assert min(row["images_per_second_1"], row["images_per_second_32"]) > 10
        assert 0.1 < row["cold_start"] < 200 and 2e7 < row["memory"] < 4e9
        assert row["file"] == pytest.approx(150_000, rel=0.2)
    if "onnxruntime" not in rows:
        assert "pip install 'flaxcnn[onnx]'" in result["missing"]["onnx"]
    assert main(["benchmark", str(workdir), "--seconds", "0"]) == 2
    assert capsys.readouterr().err == "flaxcnn benchmark: --seconds must be above 0, got 0.0\n"
