"""A finished run as a repository of the Hugging Face hub: weights, config.json and a model card.

Where timm has the network, the weights have timm's names and `timm.create_model("hf_hub:...",
pretrained=True)` loads them; other weights have ours.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from safetensors.numpy import save

from flaxcnn.errors import UserError
from flaxcnn.training.inference import TrainedRun
from flaxcnn.weights import export
from flaxcnn.weights.catalogue import timm_name

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
# Arguments of networks that change how they are trained, and not what they compute afterwards.
_TRAINING_ONLY = {"dropout", "dropout_first", "drop_path", "auxiliary_dropout", "maps_dropout"}
_TRAINING_ONLY |= {"kernel_init", "dense_init", "momentum", "norm_momentum", "remat"}


def make_files(run: TrainedRun, repository: str, licence: str = "") -> dict[str, bytes]:
    """The files of the repository, by name. Raises UserError unless the run is finished."""
    if not run.workdir.has("result"):
        raise UserError(f"{run.workdir.path} is not finished: train it to its end first")
    name = run.config.model.name
    arguments, own = list_arguments(run)
    classes = arguments["num_classes"]
    architecture = "" if own or run.config.task.name != "classification" else timm_name(name)
    layout = "timm" if architecture else "flaxcnn"
    shape, channels = tuple(run.facts.image_shape), run.facts.image_shape[2]
    reading = run.preprocessing
    # A run whose images had one size takes no other; whoever loads its network may.
    reading = dataclasses.replace(reading, resize=reading.resize or run.config.data.resize)
    tensors = export(name, run.variables, layout, input_shape=shape, **arguments)
    config = {
        "architecture": architecture or name,
        "num_classes": classes,
        **({"label_names": run.facts.class_names} if run.facts.class_names else {}),
        **_model_args(own, channels if architecture else 3),
        "pretrained_cfg": {
            **reading.to_config(),
            "fixed_input_size": False,
            "num_classes": classes,
            **({"license": licence} if licence else {}),
        },
        "flaxcnn": {"model": name, "layout": layout, "step": run.step},
    }
    card = _write_card(run, repository, config, licence)
    return {
        WEIGHTS: save(tensors, metadata={"format": "pt"}),  # which timm asks for
        CONFIG: (json.dumps(config, indent=2) + "\n").encode(),
        CARD: card.encode(),
    }


def list_arguments(run: TrainedRun) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of the run's network, and which of them make it another than the usual one."""
    classes: Any = getattr(run.model, "num_classes", None)
    kwargs = dict(run.config.model.kwargs)
    own = {key: kwargs[key] for key in kwargs.keys() - _TRAINING_ONLY - {"num_classes"}}
    return {**kwargs, "num_classes": classes}, own


def _model_args(own: dict[str, Any], channels: int) -> dict[str, Any]:
    """What `create_model` needs beside the name, ours or timm's."""
    args = own | ({"in_chans": channels} if channels != 3 else {})
    return {"model_args": args} if args else {}


def _write_card(run: TrainedRun, repository: str, config: dict[str, Any], licence: str) -> str:
    """The model card: what is known of the run, and how the weights are loaded."""
    facts, name = run.facts, config["flaxcnn"]["model"]
    in_timm = config["flaxcnn"]["layout"] == "timm"
    classification = run.config.task.name == "classification"
    tags = ["image-classification"] * classification + ["flaxcnn", "jax"] + ["timm"] * in_timm
    head = {"tags": tags, "library_name": "timm" if in_timm else "flaxcnn"}
    head |= {"pipeline_tag": "image-classification"} if classification else {}
    head |= {"license": licence} if licence else {}
    height, width, channels = facts.image_shape
    images = f"{width}x{height} {'grey' if channels == 1 else 'RGB'} images"
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in head.items()), "---"]
    lines += [f"# {repository}", "", f"`{name}` with {facts.parameters:,} parameters, trained "]
    lines[-1] += f"with flaxcnn on `{_name_source(run)}`, {images}. Step {run.step:,}."
    if figures := _find_figures(run):
        split = run.workdir.read("result")["split"]
        lines += ["", f"| {split} | |", "| --- | --- |"]
        lines += [f"| {metric} | {value:.4f} |" for metric, value in figures.items()]
    mean, std = (", ".join(f"{x:.4f}" for x in values) for values in (facts.mean, facts.std))
    lines += ["", f"Input: pixels in 0..1, less the mean ({mean}), divided by ({std})."]
    if facts.class_names:
        lines += ["", f"Classes: {', '.join(facts.class_names)}."]
    lines += ["", "```python", "import flaxcnn", ""]
    lines += [f'predictor = flaxcnn.load("hf://{repository}")', "```"]
    if in_timm:
        lines += ["", "```python", "import timm", ""]
        lines += [f'model = timm.create_model("hf_hub:{repository}", pretrained=True)', "```"]
    return "\n".join(lines) + "\n"


def _name_source(run: TrainedRun) -> str:
    """The data set, without the folders that it lies in on this machine."""
    kind, colon, rest = run.config.data.source.partition(":")
    return kind if not colon else f"{kind}:{rest if kind == 'tfds' else Path(rest).name}"


def _find_figures(run: TrainedRun) -> dict[str, float]:
    """The metrics of the checkpoint that is published, as the run measured them at its end."""
    result = run.workdir.read("result")
    found = next((r for r in (result, result.get("best", {})) if run.step in _steps(r)), {})
    return {name: value for name, value in found.items() if isinstance(value, float)}


def _steps(result: dict[str, Any]) -> set[int]:
    return {result[key] for key in ("steps", "step") if key in result}
