"""The stages of `flaxcnn compress`: pruning and sharing, with retraining of what is left."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from flaxcnn.compression.encode import encode
from flaxcnn.compression.prune import apply_masks, prune
from flaxcnn.compression.share import share
from flaxcnn.errors import UserError
from flaxcnn.training import Config, train
from flaxcnn.training.config_fields import change_fields
from flaxcnn.training.inference import load_run

Variables = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is done to a network.

    Attributes:
      sparsity: shares of the kernels' weights that are pruned, one round after another.
      bits: of a shared weight.
      retrain: epochs after each round of pruning, at the config's optimizer and `rate`.
      finetune: epochs of the codebooks, by Adam at `finetune_rate`.
      rate: at the start of each; it falls to 0 along a cosine.
    """

    sparsity: Sequence[float] = ()
    bits: int = 6
    retrain: int = 0
    finetune: int = 0
    rate: float = 0.01
    finetune_rate: float = 1e-4


def compress(
    variables: Variables, plan: Plan, config: Config, folder: Path, describing: Mapping[str, Any]
) -> Variables:
    """Prunes and shares `variables`, retraining in runs in `folder` where the plan says so.

    The first run starts with the config's `model.weights`, which are `variables`. A folder with
    finished runs of the same plan is used as it is, so that a call that was stopped resumes.
    `describing` is what `encode` writes of the network.
    """
    changes: dict[str, Any] = {
        "stages": (),
        "run.mirror": "",
        "run.budget": "",
        "early_stopping": 0,
        "data.cache_features": False,
        "optimizer.freeze": "",
        "optimizer.schedule.name": "cosine",
        "optimizer.schedule.warmup_epochs": 0.0,
        "optimizer.schedule.final_fraction": 0.0,
    }
    masks: Mapping[str, np.ndarray] = {}
    for number, sparsity in enumerate(plan.sparsity, 1):
        masks = prune(variables["params"], sparsity)
        variables = {**variables, "params": apply_masks(variables["params"], masks)}
        if not plan.retrain:
            continue
        run = folder / f"pruned{number}"
        changes |= {
            "optimizer.mask_file": str(_save_masks(masks, folder / f"masks{number}.safetensors")),
            "optimizer.learning_rate": plan.rate,
            "epochs": plan.retrain,
        }
        variables = _train(change_fields(config, changes), run)
        changes["model.weights"] = f"run:{run},checkpoint=last"
    variables = {**variables, "params": share(variables["params"], plan.bits)}
    if not plan.finetune:
        return variables
    masks = masks or prune(variables["params"], 0.0)
    shared = folder / "shared.fcz"
    _write(shared, encode(variables, describing).data)
    changes |= {
        "model.weights": f"file:{shared}",
        "optimizer.mask_file": str(_save_masks(masks, folder / "masks.safetensors")),
        "optimizer.share": True,
        "optimizer.name": "adam",
        "optimizer.kwargs": {},
        "optimizer.weight_decay": 0.0,
        "optimizer.learning_rate": plan.finetune_rate,
        "epochs": plan.finetune,
    }
    return _train(change_fields(config, changes), folder / "shared")


def _train(config: Config, folder: Path) -> Variables:
    if train(config, folder) is None:
        raise UserError(f"stopped in {folder}: the same command resumes")
    # The last, where the rate is 0: an earlier checkpoint is mostly better by chance.
    return jax.device_get(dict(load_run(folder, "last").variables))


def _save_masks(masks: Mapping[str, np.ndarray], file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(dict(masks), file)
    return file.absolute()


def _write(file: Path, data: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
