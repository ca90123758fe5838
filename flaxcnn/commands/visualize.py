"""The command `flaxcnn visualize augment`, and how pictures of every KIND are saved."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from flaxcnn.errors import UserError
from flaxcnn.exit_status import DONE
from flaxcnn.tasks.augment_pictures import draw_policy
from flaxcnn.tasks.figures import save_figure
from flaxcnn.training.config_file import load_config

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def run(args: argparse.Namespace) -> int:
    """What a config's augmentation makes of images: each entry alone, then all of them."""
    data = load_config(args.config).data
    check_folder(args.out)
    figure = draw_policy(
        data.augment,
        args.image,
        masks=args.mask,
        image_size=data.image_size,
        resize=data.resize,
        channels=data.channels,
        samples=args.samples,
        seed=args.seed,
        title=args.config,
    )
    save(figure, args.out)
    return DONE


def check_folder(out: str) -> None:
    """Raises UserError unless the picture's folder is there, before anything is computed."""
    folder = Path(out).parent
    if not folder.is_dir():
        raise UserError(f"--out {out}: there is no folder {folder}")


def save(figure: "Figure", out: str) -> None:
    """Writes the figure as PNG and prints the file's name."""
    check_folder(out)
    try:
        save_figure(figure, out)
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}") from error
    print(out)
