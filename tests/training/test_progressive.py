"""Training images that grow: which size a step sees follows from its number alone."""

import jax
import pytest

from flaxcnn.data.augment import find_stages, policy_at, read_policy
from flaxcnn.errors import UserError
from flaxcnn.training import Config, DataConfig, ModelConfig, train
from flaxcnn.training.experiment import make_experiment
from flaxcnn.training.logger import read_rows
from flaxcnn.training.step import TrainStep
from flaxcnn.training.workdir import Workdir

GROWING = (("flip",), ("progressive_resize", ((0, 4, 4), (2, 6, 8))), ("cutout", 2))

SMALL = {"maps": ((4, 3),), "hidden": (), "global_pool": True}


def test_a_policy_is_one_for_each_stretch_of_epochs():
    assert find_stages(GROWING) == (0, 2) and find_stages((("flip",),)) == (0,)
    sizes = [policy_at(GROWING, epoch)[1] for epoch in (0, 1, 2, 9)]
    assert sizes == [("resize", 4, 4)] * 2 + [("resize", 6, 8)] * 2
    assert policy_at(GROWING, 0)[::2] == GROWING[::2]
    named = ("progressive_resize", {"stages": ((0, 5, 5), (3, 6, 6))})
    assert find_stages([named]) == (0, 3) and policy_at([named], 3) == (("resize", 6, 6),)


@pytest.mark.parametrize(
    ("stages", "wrong"),
    [
        ((), "stages must be"),
        ((0, 4, 4), "stages must be"),
        (((1, 4, 4),), "must rise from 0"),
        (((0, 4, 4), (0, 5, 5)), "must rise from 0"),
        (((0, 4, 4), (3, 0, 5)), "height must be"),
    ],
)
def test_wrong_stages_are_named(stages, wrong):
    with pytest.raises(UserError, match=wrong):
        read_policy([("progressive_resize", stages)])


@pytest.fixture
def shapes(monkeypatch) -> list[tuple[int, ...]]:
    """Of the images of each training step that is traced."""
    monkeypatch.setattr("flaxcnn.training.report._draw", lambda *arguments: None)
    found, traced = [], TrainStep._gradients

    def note(self, state, trained, batch):
        found.append(batch[0].shape[1:])
        return traced(self, state, trained, batch)

    monkeypatch.setattr(TrainStep, "_gradients", note)
    return found


def make_config() -> Config:
    return Config(
        model=ModelConfig("digits_cnn", kwargs=SMALL),
        data=DataConfig("digits", batch_size=256, augment=GROWING[1:2], eval_batch_size=360),
        epochs=3,
        steps_per_call=5,
    )


def test_the_size_follows_from_the_step(shapes, tmp_path):
    experiment = make_experiment(make_config(), Workdir(tmp_path))
    assert [experiment.stage_at(step) for step in (0, 4, 9, 10, 14)] == [0, 0, 0, 2, 2]
    feeder = experiment.feeder(experiment.dataset.splits["train"])
    items = next(feeder.feed(experiment.plan))
    for epoch, shape in ((0, (4, 4, 1)), (2, (6, 8, 1)), (None, (6, 8, 1))):
        shapes.clear()
        call = experiment.train_call(feeder, epoch)
        jax.eval_shape(call, experiment.abstract_state(), feeder.arrays, items, 1.0)
        assert set(shapes) == {shape}
    assert experiment.facts.image_shape == [8, 8, 1]  # of tests


@pytest.mark.slow
def test_a_run_grows_resumes_and_is_evaluated_at_its_own_size(shapes, tmp_path):
    config = make_config()
    whole = train(config, tmp_path / "whole")
    assert list(dict.fromkeys(shapes)) == [(4, 4, 1), (6, 8, 1)]
    rows = read_rows(Workdir(tmp_path / "whole"))
    timed = ["images_per_second" in row for row in rows if row["split"] == "train"]
    assert timed == [False, True, False]  # the first call of each size compiles
    shapes.clear()
    calls = iter(range(9))
    assert train(config, tmp_path / "parts", stop=lambda: next(calls) == 1) is None
    assert set(shapes) == {(4, 4, 1)}
    shapes.clear()
    assert train(config, tmp_path / "parts") == whole
    assert set(shapes) == {(6, 8, 1)}


def test_a_network_that_cannot_take_a_size_is_refused_before_the_first_step(tmp_path):
    config = Config(
        model=ModelConfig("mnist_mlp_512", kwargs={"hidden": (4,)}),
        data=DataConfig("digits", augment=(("progressive_resize", ((0, 4, 4), (1, 8, 8))),)),
    )
    with pytest.raises(UserError, match="data.augment: the network cannot take 4x4x1 images"):
        train(config, tmp_path)
