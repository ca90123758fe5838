"""What the config's fields of imbalance do to a run, from its data to its compiled step."""

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from flaxcnn.errors import UserError
from flaxcnn.training import BalanceConfig, Config, DataConfig, LossConfig
from flaxcnn.training.experiment import Experiment
from flaxcnn.training.parts import load_data


def make(**balance):
    loss = LossConfig(class_weights="balanced")
    data = DataConfig(batch_size=64, balance=BalanceConfig(**balance))
    config = Config(data=data, loss=loss, epochs=2)
    dataset = load_data(config)
    experiment = Experiment(config, dataset)
    _ = experiment.facts
    return experiment


def test_only_the_training_split_is_made_unbalanced():
    plain = load_data(Config()).splits
    dataset = load_data(Config(data=DataConfig(balance=BalanceConfig(subsample={8: 0.1, 9: 0.5}))))
    for name in ("validation", "test"):
        for ours, theirs in zip(
            dataset.splits[name].load(slice(None)), plain[name].load(slice(None)), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)
    before, after = (np.bincount(s["train"].strata) for s in (plain, dataset.splits))
    np.testing.assert_array_equal(after[:8], before[:8])
    np.testing.assert_allclose(after[8:], before[8:] * [0.1, 0.5], atol=0.5)


def test_the_run_counts_its_classes_and_weighs_them_as_they_are_drawn():
    experiment = make(subsample={"8": 0.1}, expand={"8": 4})
    facts, labels = experiment.facts, experiment.dataset.splits["train"].strata
    assert facts.train_images == np.bincount(labels).tolist()
    assert facts.train_draws == [n * (5 if i == 8 else 1) for i, n in enumerate(facts.train_images)]
    assert experiment.plan.steps_per_epoch == sum(facts.train_draws) // 64
    epoch = labels[np.repeat(np.arange(len(labels)), np.where(labels == 8, 5, 1))]
    expected = compute_class_weight("balanced", classes=np.arange(10), y=epoch)
    np.testing.assert_allclose(experiment.task.class_weights, expected, rtol=1e-12)
    seen = labels[np.concatenate(list(experiment.plan))[: experiment.plan.steps_per_epoch]]
    assert abs(np.bincount(seen.ravel()) - facts.train_draws).sum() < 64  # the rest is dropped


def test_unknown_classes_are_refused():
    for field in ("subsample", "expand"):
        with pytest.raises(UserError, match=f"^data.balance.{field}: there is no class 'ten'"):
            make(**{field: {"ten": 1}})
