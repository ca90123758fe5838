"""The command `flaxcnn visualize augment`: pictures of what a config's augmentation does."""

import argparse

from flaxcnn.exit_status import DONE
from flaxcnn.tasks.augment_pictures import draw_policy
from flaxcnn.training.config_file import load_config


def run(args: argparse.Namespace) -> int:
    """What a config's augmentation makes of images: each entry alone, then all of them."""
    data = load_config(args.config).data
    draw_policy(
        args.out,
        data.augment,
        args.image,
        image_size=data.image_size,
        resize=data.resize,
        channels=data.channels,
        samples=args.samples,
        seed=args.seed,
        title=args.config,
    )
    print(args.out)
    return DONE
