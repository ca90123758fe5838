"""The command `flaxcnn push`: a finished run's weights to a repository of the Hugging Face hub."""

import argparse
import json

from flaxcnn.exit_status import DONE
from flaxcnn.training.inference import load_run
from flaxcnn.training.publish import CONFIG, make_files
from flaxcnn.weights import hub


def run(args: argparse.Namespace) -> int:
    """Writes model.safetensors, config.json and the model card in one commit."""
    repository = hub.Repository.parse(args.repository).name
    files = make_files(load_run(args.workdir, args.checkpoint), repository, args.licence)
    config = json.loads(files[CONFIG])
    layout, step = config["flaxcnn"]["layout"], config["flaxcnn"]["step"]
    hub.create(repository, private=args.private)
    page = hub.push(repository, files, f"flaxcnn push: step {step}")
    print(
        f"{args.checkpoint} checkpoint, step {step}, in {layout}'s names, as "
        f"{config['architecture']}: {page}"
    )
    return DONE
