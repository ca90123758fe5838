"""MLflow: an experiment's run where MLFLOW_TRACKING_URI says, or in ./mlruns."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param  # pyright: ignore[reportMissingImports]
from mlflow.tracking import MlflowClient  # pyright: ignore[reportMissingImports]

from flaxcnn.training.sinks import flatten


class Tracker:
    """See `flaxcnn.training.sinks.Tracker`. No run of the user's own is touched."""

    def __init__(self, place: str, name: str, config: Mapping[str, Any], run_id: str, folder: Path):
        self._client, self.run_id = MlflowClient(), run_id
        if run_id:
            self._client.set_terminated(run_id, "RUNNING")
            return
        found = self._client.get_experiment_by_name(place)
        experiment = found.experiment_id if found else self._client.create_experiment(place)
        self.run_id = self._client.create_run(experiment, run_name=name).info.run_id
        parameters = [Param(key, str(value)[:500]) for key, value in flatten(config).items()]
        for start in range(0, len(parameters), 100):  # as many as a request may have
            self._client.log_batch(self.run_id, params=parameters[start : start + 100])

    def reached(self, split: str) -> int:
        """The last step that it has."""
        history = self._client.get_metric_history(self.run_id, f"{split}/loss")
        return max((metric.step for metric in history), default=0)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Figures of one step."""
        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self.run_id, metrics=metrics)

    def picture(self, step: int, file: Path) -> None:
        """A PNG file."""
        self._client.log_artifact(self.run_id, str(file))

    def close(self, finished: bool) -> None:
        """Returns when all of it has been sent."""
        self._client.set_terminated(self.run_id, "FINISHED" if finished else "KILLED")
