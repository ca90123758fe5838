"""`flaxcnn report` of a real run, and of one that `flaxcnn train` has just finished."""

import json
import re

import numpy as np
import pytest

from flaxcnn.commands import report
from flaxcnn.commands.main import main

TRAIN = [
    "train",
    "digits",
    "--config.epochs=2",
    "--config.data.batch_size=128",
    "--config.model.name=mnist_cnn_220k",
    "--config.model.kwargs={}",
    "--config.optimizer.name=sgd",
    "--config.optimizer.ema_decay=0.0",
    "--config.steps_per_call=4",
]


pytestmark = pytest.mark.slow  # each waits for a run


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of two epochs, without a report."""
    folder = tmp_path_factory.mktemp("runs") / "run <1>"
    assert main([*TRAIN, "--no-report", "--workdir", str(folder)]) == 0
    assert not (folder / "report.html").exists()
    return folder


def test_the_page_and_json_say_what_the_run_has_measured(workdir, tmp_path, capsys):
    out, data = tmp_path / "page.html", tmp_path / "page.json"
    assert main(["report", str(workdir), "--out", str(out), "--json", str(data)]) == 0
    assert capsys.readouterr().out.startswith(f"{out} (")
    page, result = out.read_text(), json.loads((workdir / "result.json").read_text())
    assert "run &lt;1&gt;" in page and "run <1>" not in page
    (read,) = json.loads(data.read_text())["runs"]
    assert read["figures"]["accuracy"] == result["accuracy"] and not read["notes"]
    assert read["hashes"]["parameters at the end"] == result["params_sha256"] in page
    with np.load(workdir / "predictions.npz") as saved:
        label, true, loss = (saved[name] for name in ("label", "true_label", "loss"))
    np.testing.assert_allclose(loss.mean(dtype=np.float64), result["loss"], rtol=1e-6)
    wrong = np.flatnonzero(label != true)
    worst = wrong[np.argsort(-loss[wrong], kind="stable")][:48]
    assert [mistake["index"] for mistake in read["mistakes"]] == worst.tolist()
    assert read["mistakes"][0]["predicted"] == str(label[worst[0]])
    assert read["wrong"] == len(wrong) and len(re.findall('class="views"', page)) == len(worst)
    assert page.count('alt="Grad-CAM"') == page.count('alt="integrated gradients"') == len(worst)
    assert page.count('alt="conv') >= 2  # the filters and two layers' maps
    # One matrix for each validation, and the test's.
    assert [(c["split"], c["epoch"]) for c in read["confusions"]] == [
        ("validation", 1),
        ("validation", 2),
        ("test", 2),
    ]
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    accuracy = [row["accuracy"] for row in rows if row["split"] == "validation"]
    for confusion, figure in zip(read["confusions"], [*accuracy, result["accuracy"]], strict=True):
        counts = np.array(confusion["counts"])
        assert np.trace(counts) / counts.sum() == pytest.approx(figure)
    np.testing.assert_array_equal(counts.sum(1), np.bincount(true))


def test_training_makes_it_and_outlives_its_failure(workdir, capsys, monkeypatch):
    command, page = [*TRAIN, "--workdir", str(workdir)], workdir / "report.html"

    def fail(*_):
        raise ValueError("a reason\nin two lines")

    with monkeypatch.context() as patch:
        patch.setattr(report, "render", fail)
        assert main(command) == 0
    assert capsys.readouterr().err == "no report: a reason in two lines\n"
    assert not page.exists()
    assert main(command) == 0
    said = capsys.readouterr()
    assert said.err == f"report: {page}\n" and said.out.endswith(f" · {workdir}\n")
    made = page.stat().st_mtime_ns
    assert main(command) == 0 and page.stat().st_mtime_ns == made


def test_what_is_no_finished_run_is_said_in_one_line(workdir, tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert f"{tmp_path} holds no run" in capsys.readouterr().err
    assert main(["report", str(workdir), f"{workdir}/"]) == 2
    assert "the same run twice" in capsys.readouterr().err
