"""The command `flaxcnn visualize augment`: pictures of what a config's augmentation does."""

import argparse
from pathlib import Path

from flaxcnn.errors import UserError
from flaxcnn.exit_status import DONE
from flaxcnn.tasks.augment_pictures import draw_policy
from flaxcnn.tasks.figures import save_figure
from flaxcnn.training.config_file import load_config


def run(args: argparse.Namespace) -> int:
    """What a config's augmentation makes of images: each entry alone, then all of them."""
    data = load_config(args.config).data
    out = Path(args.out)
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}")
    figure = draw_policy(
        data.augment,
        args.image,
        image_size=data.image_size,
        resize=data.resize,
        channels=data.channels,
        samples=args.samples,
        seed=args.seed,
        title=args.config,
    )
    try:
        save_figure(figure, out)
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}") from error
    print(args.out)
    return DONE
