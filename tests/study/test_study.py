"""Studies: which runs they plan, that they resume where they stopped, what their report says."""

import json
import statistics

import numpy as np
import pytest

from flaxcnn.commands.main import main
from flaxcnn.errors import UserError
from flaxcnn.study import Study, carry_out, grid, plan_runs, report
from flaxcnn.tasks.classification import Classification
from flaxcnn.training import Config, ModelConfig, OptimizerConfig
from flaxcnn.training.workdir import Workdir

CONFIG = Config(
    model=ModelConfig("lenet5_dense"), optimizer=OptimizerConfig(name="sgd"), epochs=1, seed=3
)
FILE = '''"""Rates on digits

What the source says.
"""
from flaxcnn.study import Study
from flaxcnn.training import Config, DataConfig, ModelConfig

def get_study():
    return Study(
        Config(model=ModelConfig("mnist_mlp_512"), epochs=9, data=DataConfig(batch_size=256)),
        cases={"low": {"optimizer.learning_rate": 1e-4}, "high": {"optimizer.learning_rate": 0.1}},
        seeds=2,
        quick={"epochs": 2},
        source={"high": 0.5},
    )
'''


def test_a_grid_is_every_combination():
    cases = grid({"data.batch_size": (8, 16), "optimizer.name": ("sgd", "adam")})
    assert list(cases) == [
        "batch_size=8, name=sgd",
        "batch_size=8, name=adam",
        "batch_size=16, name=sgd",
        "batch_size=16, name=adam",
    ]
    assert cases["batch_size=16, name=sgd"] == {"data.batch_size": 16, "optimizer.name": "sgd"}


def test_runs_are_planned_seed_by_seed_and_leave_the_config_alone(tmp_path):
    changed = {"model.kwargs.activation": "tanh", "epochs": 7, "data.balance.expand": {"4": 2}}
    cases = {"A, b": changed, "c": {}}
    runs = plan_runs(Study(CONFIG, cases, seeds=2), tmp_path)
    assert [(r.case, r.config.seed, str(r.workdir.relative_to(tmp_path))) for r in runs] == [
        ("A, b", 3, "a_b/seed3"),
        ("c", 3, "c/seed3"),
        ("A, b", 4, "a_b/seed4"),
        ("c", 4, "c/seed4"),
    ]
    assert runs[0].config.model.kwargs.activation == "tanh"
    assert runs[0].config.epochs == 7
    assert runs[0].config.data.balance.expand.to_dict() == {"4": 2}
    assert not runs[1].config.model.kwargs
    assert CONFIG.epochs == 1
    assert not CONFIG.model.kwargs


def test_quick_fields_go_over_those_of_a_case(tmp_path):
    study = Study(CONFIG, {"long": {"epochs": 50}}, seeds=1, quick={"epochs": 2})
    assert plan_runs(study, tmp_path, quick=True)[0].config.epochs == 2
    assert plan_runs(study, tmp_path)[0].config.epochs == 50


def test_each_run_has_a_mirror_of_its_own(tmp_path):
    study = Study(
        CONFIG, {"a": {"run.mirror": "gs://bucket/"}, "b c": {"run.mirror": "m"}}, seeds=2
    )
    mirrors = [run.config.run.mirror for run in plan_runs(study, tmp_path)]
    assert mirrors == ["gs://bucket/a/seed3", "m/b_c/seed3", "gs://bucket/a/seed4", "m/b_c/seed4"]


@pytest.mark.parametrize(
    ("study", "message"),
    [
        (
            Study(CONFIG, {"a": {"optimizer.rate": 1}}),
            r"^case 'a': the config has no field optimizer",
        ),
        (
            Study(CONFIG, {"a": {}, "b": {"epochs": 0}}),
            "^case 'b': epochs must be at least 1, got 0$",
        ),
        (Study(CONFIG, {}), "^a study needs at least one case and one seed$"),
        (Study(CONFIG, {"a": {}}, source={"b": 0.5}), "^the study's source names no case: 'b'$"),
        (Study(CONFIG, {"a b": {}, "A,b": {}}), "^two cases would share a folder: a_b, a_b$"),
        (CONFIG, r"^get_study\(\) must return a flaxcnn Study, got Config$"),
    ],
)
def test_a_study_that_cannot_start_is_refused(study, message, tmp_path):
    with pytest.raises(UserError, match=message):
        plan_runs(study, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A small study carried out by the command: (its file, its workdir)."""
    folder = tmp_path_factory.mktemp("study")
    file = folder / "rates.py"
    file.write_text(FILE)
    workdir = folder / "runs"
    assert main(["study", str(file), "--quick", "--workdir", str(workdir)]) == 0
    return file, workdir


@pytest.mark.slow
def test_the_report_has_the_runs_own_figures(done):
    _, workdir = done
    content = json.loads((workdir / "rates.json").read_text())
    for case, where in (("low", "low"), ("high", "high")):
        results = [Workdir(workdir / where / f"seed{seed}").read("result") for seed in (0, 1)]
        accuracies = [result["accuracy"] for result in results]
        found = content["cases"][case]
        assert found["accuracy"] == accuracies
        assert found["seeds"] == [0, 1]
        recall = statistics.fmean(r["report"]["classes"][4]["recall"] for r in results)
        assert found["classes"]["4"]["recall"] == pytest.approx(recall)
        mean, spread = 100 * np.mean(accuracies), 100 * np.std(accuracies, ddof=1)
        source = "50.00 %" if case == "high" else ""
        row = f"| {case} | {mean:.2f} % | {spread:.2f} | 2 | {source} |"
        assert row in (workdir / "rates.md").read_text()
    text = (workdir / "rates.md").read_text()
    assert text.startswith(
        "# Rates on digits (quick form)\n\n**This is the quick form (`--quick`: epochs=2)"
    )
    assert "\n\nWhat the source says.\n\n| case | test accuracy |" in text
    assert content["quick"] is True
    for name in ("rates_curves.png", "rates_cases.png"):
        assert f"({name})" in text
        assert (workdir / name).read_bytes().startswith(b"\x89PNG")
    assert "jaxlib" in text
    assert "--quick" in text


@pytest.mark.slow
def test_a_study_resumes_where_it_stopped(done, monkeypatch, capsys):
    file, workdir = done
    before = (workdir / "low" / "seed0" / "result.json").read_bytes()
    removed = workdir / "high" / "seed1" / "result.json"
    expected = removed.read_bytes()
    removed.unlink()
    assert main(["study", str(file), "--quick", "--workdir", str(workdir)]) == 0
    assert removed.read_bytes() == expected  # made again from the last checkpoint
    assert (workdir / "low" / "seed0" / "result.json").read_bytes() == before

    monkeypatch.setattr("flaxcnn.study.study.train", lambda config, folder: None)
    removed.unlink()
    (workdir / "rates.md").unlink()
    assert main(["study", str(file), "--quick", "--workdir", str(workdir)]) == 75
    assert "the same command again resumes" in capsys.readouterr().out
    assert not (workdir / "rates.md").exists()


def test_a_run_that_fails_names_its_case(tmp_path, monkeypatch):
    def fail(config, folder):
        raise UserError("the loss is not finite")

    monkeypatch.setattr("flaxcnn.study.study.train", fail)
    runs = plan_runs(Study(CONFIG, {"wild": {}}, seeds=1), tmp_path)
    with pytest.raises(UserError, match=r"^case 'wild', seed 3: the loss is not finite$"):
        carry_out(runs)


def test_tables_of_one_seed_have_no_deviation():
    scores = {"precision": 0.5, "recall": 0.25, "f1": 1 / 3}
    case = {
        "accuracy": [0.4321],
        "loss": [1.5],
        "split": "test",
        "epochs": 2,
        "parameters": 12345,
        "images_per_epoch": 600,
        "seconds_per_epoch": 1.25,
        "classes": {"cat": scores},
    }
    assert report.format_table({"a": case}, Classification.monitor).splitlines()[2] == (
        "| a | 43.21 % | - | 1 | 1.5000 | 2 | 600 | 1.2 | 12,345 |"
    )
    assert (
        Classification(("cat",)).format_cases({"a": case}).splitlines()[2]
        == "| cat | 0.50, 0.25, 0.33 |"
    )


def test_the_command_tells_mistakes_in_one_line(tmp_path, capsys):
    assert main(["study", str(tmp_path / "none.py")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    file = tmp_path / "empty.py"
    file.write_text("x = 1\n")
    assert main(["study", str(file)]) == 2
    assert "get_study" in capsys.readouterr().err
