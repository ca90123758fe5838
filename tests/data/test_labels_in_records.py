"""Streamed sets that have labels only beside the images: read where something needs them."""

import dataclasses

import numpy as np
import pytest

from flaxcnn.data import sources
from flaxcnn.data.splits import LazySplit, Opened, Records, knows_strata
from flaxcnn.training import Config, DataConfig, LossConfig, ModelConfig, RunConfig
from flaxcnn.training.experiment import make_experiment
from flaxcnn.training.workdir import Workdir

NAMES = ("a", "b", "c")
TRAIN, VALIDATION, TEST = 3000, 700, 900


@dataclasses.dataclass(frozen=True)
class Labelled(Records):
    """Image i is grey i % 200, of class i % 3 (or -1, withheld); what is read is noted."""

    count: int
    seen: set[int]
    withheld: bool = False

    def __len__(self) -> int:
        return self.count

    def read(self, indices):
        for index in map(int, indices):
            self.seen.add(index)
            yield np.full((4, 4, 1), index % 200, np.uint8), self._label(index)

    def read_labels(self, indices):
        self.seen.update(map(int, indices))
        return np.array([self._label(int(index)) for index in indices], np.int32)

    def _label(self, index: int) -> int:
        return -1 if self.withheld else index % 3


@pytest.fixture
def seen(monkeypatch) -> dict[str, set[int]]:
    """What has been read of each split of tfds:large."""
    found = {name: set() for name in ("train", "validation", "test")}
    counts = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
    records = {name: Labelled(counts[name], found[name], withheld=name == "test") for name in found}
    opened = Opened(NAMES, (4, 4, 1), records, version="large/1.0.0")
    monkeypatch.setitem(sources.OPENERS, "tfds", lambda *arguments: opened)
    return found


def make_config(**fields) -> Config:
    data = DataConfig(
        "tfds:large",
        batch_size=40,
        resident_limit=10_000,
        normalization=((0.5,), (0.5,)),
        feeder="streaming",
    )
    model = ModelConfig("mnist_mlp_512", kwargs={"hidden": (2,)})
    run = RunConfig(workers=0)
    return Config(**{"model": model, "data": data, "run": run, "epochs": 1, **fields})


def test_a_run_reads_few_labels_before_its_first_step(seen, tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    experiment = make_experiment(make_config(), Workdir(folder))
    assert {name: len(read) for name, read in seen.items()} == dict.fromkeys(seen, 256)
    assert {min(seen["train"]), max(seen["train"])} == {0, TRAIN - 1}
    assert list(experiment.dataset.splits) == ["train", "validation"]
    assert "test has no labels (all 256 are outside 0..2)" in capsys.readouterr().err
    # Each image is still shown once, as with labels, and what is not known is not said.
    shown = np.concatenate([experiment.plan[call].ravel() for call in range(len(experiment.plan))])
    assert sorted(shown) == list(range(TRAIN))
    assert experiment.facts.train_draws == [TRAIN] and experiment.facts.setting.train_draws == ()
    train_split = experiment.dataset.splits["train"]
    assert isinstance(train_split, LazySplit) and not knows_strata(train_split)
    make_experiment(make_config(), Workdir(folder))  # resumed
    assert len(seen["train"]) == 256


def test_labels_are_read_where_something_goes_by_them(seen, tmp_path):
    (tmp_path / "run").mkdir()
    config = make_config(loss=LossConfig(class_weights="balanced"))
    experiment = make_experiment(config, Workdir(tmp_path / "run"))
    assert len(seen["train"]) == TRAIN and len(seen["validation"]) == 256
    assert experiment.facts.setting.train_draws == (1000, 1000, 1000)


def test_the_order_is_that_of_known_labels(seen, tmp_path, monkeypatch):
    plans = []
    for name in ("unknown", "known"):
        (tmp_path / name).mkdir()
        if name == "known":
            monkeypatch.setattr(Labelled, "labels", lambda self: self.read_labels(range(len(self))))
        experiment = make_experiment(make_config(), Workdir(tmp_path / name))
        plans.append([experiment.plan[call] for call in range(len(experiment.plan))])
    np.testing.assert_equal(*plans)
