"""A linear probe: how well planes divide the classes by a frozen base's features (Alain 2016)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flaxcnn.errors import UserError
from flaxcnn.training.config import Config, normalize
from flaxcnn.training.config_check import validate
from flaxcnn.training.experiment import open_experiment
from flaxcnn.training.stages import read_stages


class Probe(NamedTuple):
    """What `flaxcnn.training.linear_probe` has found."""

    classifier: Any  # scikit-learn's, of float32 features [N, F]
    strength: float  # its C, the inverse of the penalty
    accuracy: dict[str, float]  # by split


def fit_probe(config: Config, strengths: Sequence[float]) -> Probe:
    """See `flaxcnn.training.linear_probe`."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    config = normalize(config)
    config = read_stages(config)[0].config if config.stages else config
    config.data.cache_features = True
    validate(config)
    experiment = open_experiment(config, Path())
    splits = experiment.dataset.splits
    if "validation" not in splits and len(strengths) != 1:
        raise UserError("without a validation split a linear probe needs one strength")
    experiment.use_features(experiment.initial_state().variables)
    assert experiment.features is not None
    data = {name: experiment.features.of(split, name) for name, split in splits.items()}
    arrays = {name: (x.images.reshape(len(x), -1), x.targets) for name, x in data.items()}
    found: list[Probe] = []
    for strength in strengths:
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
        classifier.fit(*arrays["train"])
        accuracy = {name: float(classifier.score(*x)) for name, x in arrays.items()}
        found.append(Probe(classifier, strength, accuracy))
    return max(found, key=lambda probe: probe.accuracy.get("validation", 0))
