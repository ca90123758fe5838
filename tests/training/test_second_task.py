"""A task that is not classification, on the engine as it is: where a bright square is."""

import dataclasses
import json
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcnn.commands.main import main
from flaxcnn.data import sources
from flaxcnn.data.splits import Opened
from flaxcnn.errors import UserError
from flaxcnn.tasks import registry
from flaxcnn.tasks.figures import make_figure
from flaxcnn.tasks.task import Metric, Task
from flaxcnn.training import Config, DataConfig, ModelConfig, OptimizerConfig, TaskConfig, train
from flaxcnn.training.inference import load_run

SIDE = 8


@dataclasses.dataclass(frozen=True)
class Squares:
    """Records: image i has a bright square, and its target is the square's centre (x, y)."""

    start: int
    count: int

    def __len__(self):
        return self.count

    def read(self, indices):
        for index in indices:
            x, y = divmod((self.start + int(index)) * 7 % 36, 6)
            image = np.full((SIDE, SIDE, 1), 20, np.uint8)
            image[y : y + 2, x : x + 2] = 220
            yield image, {"centre": np.array([x + 1, y + 1], np.float32)}


def open_squares(name, image_format, record):
    records = {"train": Squares(0, 100), "validation": Squares(100, 20), "test": Squares(120, 30)}
    return Opened((), (SIDE, SIDE, 1), records, version="squares")


@dataclasses.dataclass(frozen=True)
class Regression(Task):
    """Two numbers per image, by their squared error."""

    monitor: ClassVar[Metric] = Metric("distance", "min", "px")
    pictures: ClassVar[tuple[str, ...]] = ("squares.png",)
    weight: float = 1.0

    @classmethod
    def make(cls, setting, *, weight=1.0):
        assert setting.class_names == () and setting.image_shape == (SIDE, SIDE, 1)
        return cls(weight)

    def num_outputs(self):
        return 2

    def check(self, outputs):
        if outputs.shape[-1] != 2:
            raise UserError("model.kwargs.num_classes must be 2")

    def losses(self, outputs, targets):
        return self.weight * jnp.square(outputs - targets["centre"]).sum(-1)

    def measure(self, outputs, targets):
        error = outputs - targets["centre"]
        return {
            "loss": self.losses(outputs, targets),
            "distance": jnp.sqrt(jnp.square(error).sum(-1)),
            "products": error[:, :, None] * error[:, None, :],  # [N, 2, 2]: summed on the device
        }

    def predict(self, outputs):
        return {"centre": outputs}

    def expected(self, targets):
        return {"true_centre": targets["centre"]}

    def answer(self, outputs):
        return {"centre": outputs}

    def describe(self, answer, most):
        return [{"x": float(answer["centre"][0]), "y": float(answer["centre"][1])}][:most]

    def format_entry(self, entry):
        return f"({entry['x']:.1f}, {entry['y']:.1f})"

    def report(self, means, arrays):
        return {"covariance": np.asarray(means["products"]).tolist()}

    @staticmethod
    def format(report):
        return f"covariance {report['covariance']}"

    def draw(self, file, examples):
        figure = make_figure(2, 2)
        figure.add_subplot().imshow(examples.load(np.array([0]))[0, ..., 0])
        return figure


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(registry.TASKS, "regression", f"{__name__}.Regression")
    monkeypatch.setitem(sources.OPENERS, "squares", open_squares)


def make_config(**changes) -> Config:
    config = Config(
        model=ModelConfig("mnist_mlp_512", kwargs={"hidden": (8,)}),
        data=DataConfig(source="squares:all", batch_size=16, eval_batch_size=16),
        task=TaskConfig("regression"),
        optimizer=OptimizerConfig(name="adam", learning_rate=0.02),
        epochs=3,
        steps_per_call=2,
    )
    return dataclasses.replace(config, **changes)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run that was stopped after its first call and resumed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.TASKS, "regression", f"{__name__}.Regression")
        patch.setitem(sources.OPENERS, "squares", open_squares)
        folder = tmp_path_factory.mktemp("run")
        assert train(make_config(), folder, stop=lambda: True) is None
        train(make_config(), folder)
    return folder


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(workdir, tmp_path):
    whole = train(make_config(), tmp_path)
    assert whole == json.loads((workdir / "result.json").read_text())
    assert whole["steps"] == 18 and whole["best"]["monitor"] == "distance"
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    figures = [row["distance"] for row in rows if row["split"] == "validation"]
    assert len(figures) == 3 and figures[-1] < figures[0]
    assert (workdir / "squares.png").exists() and not (workdir / "confusion_matrix.png").exists()


def test_evaluation_is_that_of_numpy_on_what_it_predicted(workdir):
    measured = load_run(workdir, "last").evaluate("test")
    with np.load(workdir / "predictions.npz") as saved:
        error = np.float64(saved["centre"]) - saved["true_centre"]
        np.testing.assert_array_equal(saved["true_centre"], measured.arrays["true_centre"])
    assert error.shape == (30, 2)
    np.testing.assert_allclose(measured.means["loss"], (error**2).sum(1).mean(), rtol=1e-5)
    distance = np.hypot(*error.T).mean()
    np.testing.assert_allclose(measured.figures["distance"], distance, rtol=1e-5)
    covariance = error.T @ error / 30
    np.testing.assert_allclose(measured.report["covariance"], covariance, rtol=1e-5)


def test_the_commands_ask_the_task(workdir, tmp_path, capsys):
    import cv2

    assert main(["report", str(workdir)]) == 0
    page = (workdir / "report.html").read_text()
    assert "<pre>covariance [[" in page and "squares.png" in page and 'id="mistakes"' not in page
    run = ["--workdir", str(workdir), "--checkpoint", "last"]
    assert main(["evaluate", *run]) == 0
    said = capsys.readouterr().out
    assert said.startswith(str(workdir / "report.html"))
    assert "covariance [[" in said and "\ntest distance " in said
    image, target = next(iter(Squares(120, 30).read([3])))
    cv2.imwrite(str(tmp_path / "square.png"), image)
    assert main(["predict", *run, "--json", str(tmp_path / "square.png")]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    with np.load(workdir / "predictions.npz") as saved:
        np.testing.assert_allclose(list(answer["top"][0].values()), saved["centre"][3], rtol=1e-5)
        np.testing.assert_array_equal(saved["true_centre"][3], target["centre"])
    assert main(["predict", *run, str(tmp_path / "square.png")]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("  (")


def test_jit_and_pmap_on_8_devices_measure_alike(workdir, tmp_path):
    assert jax.device_count() == 8
    jit = json.loads((workdir / "result.json").read_text())
    pmap = train(make_config(parallel="pmap"), tmp_path)
    np.testing.assert_allclose(pmap["loss"], jit["loss"], rtol=1e-3)
    ours, theirs = (np.array(r["report"]["covariance"]) for r in (pmap, jit))
    np.testing.assert_allclose(ours, theirs, rtol=1e-2, atol=1e-3)


def test_settings_belong_to_their_task():
    from flaxcnn.tasks.task import Setting
    from flaxcnn.training.config import LossConfig, normalize
    from flaxcnn.training.config_check import validate
    from flaxcnn.training.parts import make_task

    setting = Setting((), (SIDE, SIDE, 1))
    weighted = make_config(task=TaskConfig("regression", {"weight": 2.0}))
    assert make_task(weighted, setting) == Regression(2.0)
    for change, line in (
        ({"loss": LossConfig(name="focal")}, "loss belongs to classification"),
        ({"task": TaskConfig("regression", {"wait": 2.0})}, "task.kwargs of regression: .*wait"),
        ({"task": TaskConfig("classification", {"weight": 2.0})}, "task.kwargs: the settings of"),
    ):
        with pytest.raises(UserError, match=line):
            make_task(make_config(**change), setting)
    with pytest.raises(UserError, match="task.name must be one of .*, got 'poetry'"):
        validate(normalize(make_config(task=TaskConfig("poetry"))))
    with pytest.raises(UserError, match="monitor must be distance or loss, got 'accuracy'"):
        validate(normalize(make_config(monitor="accuracy")))
