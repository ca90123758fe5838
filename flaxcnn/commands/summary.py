"""The command `flaxcnn summary`: the layers of a network, and what each takes."""

import argparse
import json
from pathlib import Path

from flax import linen as nn

from flaxcnn.analysis import format_markdown, format_text, summary
from flaxcnn.commands.evaluate import parse_size
from flaxcnn.errors import UserError
from flaxcnn.exit_status import DONE
from flaxcnn.models import create_model, variant
from flaxcnn.training.facts import Facts
from flaxcnn.training.parts import make_model, make_task
from flaxcnn.training.workdir import Workdir


def run(args: argparse.Namespace) -> int:
    """Prints the summary of a network, or of a run's. Raises UserError for a mistake."""
    if args.batch < 1:
        raise UserError(f"--batch is {args.batch}, and must be at least 1")
    model, shape, name = _find(args.network)
    if args.image_size:
        shape = (*parse_size(args.image_size), shape[-1])
    found = summary(model, shape, args.batch, name)
    if args.format == "json":
        print(json.dumps(found.to_dict()))
    else:
        print({"text": format_text, "markdown": format_markdown}[args.format](found))
    return DONE


def _find(network: str) -> tuple[nn.Module, tuple[int, ...], str]:
    """The network, the shape of its images, and what it is called."""
    if not Path(network).is_dir():
        return create_model(network), variant(network).input_shape, network
    workdir = Workdir(network)
    config, facts = workdir.config(), Facts.read(workdir)
    model = make_model(config, make_task(config, facts.setting), None)
    return model, tuple(facts.image_shape), config.model.name
