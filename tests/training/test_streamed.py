"""A run on a set that is decoded while it is read."""

import dataclasses
import re
import time

import numpy as np
import pytest
from PIL import Image

from flaxcnn.data import folder
from flaxcnn.data.splits import LazySplit
from flaxcnn.errors import UserError
from flaxcnn.training import Config, DataConfig, ModelConfig, RunConfig
from flaxcnn.training.experiment import make_experiment
from flaxcnn.training.loop import train
from flaxcnn.training.workdir import Workdir

GIVEN = ((0.25,), (0.5,))


@pytest.fixture
def config(tmp_path) -> Config:
    """For 60 images of three classes, 42 of them for training."""
    for i in range(60):
        path = tmp_path / "photos" / "abc"[i % 3] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), 80 * (i % 3) + i, np.uint8)).save(path)
    data = DataConfig(
        source=f"folder:{tmp_path / 'photos'}",
        batch_size=8,
        image_size=(4, 4),
        channels=1,
        feeder="streaming",
        normalization=GIVEN,
    )
    model = ModelConfig(name="mnist_mlp_512", kwargs={"hidden": (8,)})
    (tmp_path / "look").mkdir()
    return Config(model=model, data=data, run=RunConfig(workers=0), epochs=2, steps_per_call=1)


def damage(config: Config, tmp_path, split: str) -> str:
    """Empties the second image of a split as a run divides the folder; its name."""
    name = list(make_experiment(config, Workdir(tmp_path / "look")).dataset.files[split])[1]
    (tmp_path / "photos" / name).write_bytes(b"")
    return name


def test_nothing_is_decoded_before_the_first_step(config, tmp_path, monkeypatch):
    read, loaded = folder.read_image, []
    monkeypatch.setattr(folder, "read_image", lambda *a, **k: loaded.append(a) or read(*a, **k))
    workdir = Workdir(tmp_path / "run")
    workdir.path.mkdir()
    experiment = make_experiment(config, workdir)
    assert isinstance(experiment.dataset.splits["train"], LazySplit) and loaded == []
    facts = workdir.read("run")
    assert (facts["mean"], facts["std"]) == ([0.25], [0.5])
    # Resumed, it keeps what it has recorded; the default samples training images alone.
    make_experiment(config, workdir)
    assert loaded == []
    data = dataclasses.replace(config.data, normalization="auto")
    other = make_experiment(dataclasses.replace(config, data=data), Workdir(tmp_path / "look"))
    assert len(loaded) == len(other.dataset.splits["train"])


def test_a_damaged_image_is_found_when_it_is_read(config, tmp_path, capsys, monkeypatch):
    name = damage(config, tmp_path, "train")
    with pytest.raises(UserError, match=rf"{name} is damaged: it is empty \(to skip it: "):
        train(config, tmp_path / "run")
    load = LazySplit.load_marked
    monkeypatch.setattr(
        LazySplit, "load_marked", lambda self, indices: time.sleep(0.05) or load(self, indices)
    )
    data = dataclasses.replace(config.data, on_bad_image="skip")
    longer = dataclasses.replace(config, data=data, epochs=4)  # than what is loaded ahead
    result = train(longer, tmp_path / "skipping")
    (replaced,) = result["replaced"]
    assert replaced.endswith(f"{name} is damaged: it is empty")
    said = capsys.readouterr()
    assert said.err.count("skipped: ") == 1 and f"skipped: {replaced}" in said.err
    # The device has next to nothing to do, and waits.
    (share,) = re.findall(r"^epoch 4/4.* images/s · data (\d+) %", said.out, re.MULTILINE)
    assert 50 < int(share) <= 100
