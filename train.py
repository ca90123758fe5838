"""Trains a network: `python train.py --config configs/mnist_cnn.py --workdir runs/mnist`.

Every field of the config can be given on the command line: `--config.optimizer.learning_rate=0.01`.
The same command again goes on with the run in the workdir; without arguments it trains on digits.
"""

import re
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from flaxcnn.errors import UserError
from flaxcnn.training import Config, run
from flaxcnn.training.config import check_field

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "digits.py"


def parse_flags(argv: list[str]) -> tuple[Config, str]:
    """The config with its overrides, and the workdir (default: runs/<name of the config file>)."""
    for argument in argv[1:]:
        if match := re.match(r"--?(?:no)?config\.([^=]+)", argument):
            check_field(match[1])
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config",
        str(DEFAULT_CONFIG),
        "The experiment: a Python file whose get_config() returns a flaxcnn Config.",
        flag_values=values,
        sys_argv=argv,
        lock_config=False,
        accept_new_attributes=True,  # keys of the kwargs; check_field has refused all others
    )
    flags.DEFINE_string("workdir", None, "Folder of the run.", flag_values=values)
    if {"--help", "-h", "-help"} & set(argv[1:]):
        print(f"{__doc__}\n{values.get_help()}")
        sys.exit(0)
    try:
        rest = values(argv)[1:]
    except flags.Error:
        raise
    except Exception as error:  # whatever the config file itself raises
        raise UserError(f"--config cannot be read: {type(error).__name__}: {error}") from error
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}; flags begin with --")
    name = config_flags.get_config_filename(values["config"])
    if not Path(name).is_file():
        raise UserError(f"--config {name}: no such file")
    return values.config, values.workdir or str(Path("runs") / Path(name).stem)


def main(argv: list[str]) -> int:
    """Exit status: 0 done or stopped on request, 2 for a mistake, told in one line."""
    try:
        run(*parse_flags(argv))
    except (UserError, flags.Error) as error:
        print(f"train.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
