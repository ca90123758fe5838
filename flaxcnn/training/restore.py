"""A run starts from its mirror, on a fresh machine or where the mirror has more."""

import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from flaxcnn.errors import UserError
from flaxcnn.training import copies
from flaxcnn.training.config import Config
from flaxcnn.training.copies import CHECKPOINT, Copies, Copy, NotWholeError
from flaxcnn.training.workdir import Workdir

PAUSE = 1.0  # seconds before an error of the file system is taken for an answer
_TRIES = 3
_T = TypeVar("_T")


def restore(mirror: Copies, where: str, folder: Workdir, staging: Path, config: Config) -> str:
    """Brings the run in `folder`, which is locked, to where `mirror` has it, if that is further.

    Of the mirror the newest copy that is whole is taken, with the older ones that the run kept; at
    the same step the folder is. `staging`, in it, is used meanwhile.

    Returns:
      Why the mirror cannot be read now, "" if it can.

    Raises:
      UserError: the mirror belongs to another run or config; or it cannot be read, or holds copies
        and none is whole, and the folder holds nothing to resume from.
    """
    shutil.rmtree(staging, ignore_errors=True)
    here = _last_step(folder)
    try:
        found = _try(lambda: mirror.find(mirror.names()))
    except Exception as error:  # each remote file system raises errors of its own
        if here < 0:
            raise UserError(
                f"--mirror {where} cannot be read ({reason(error)}), and {folder.path} holds no "
                "checkpoint: the run would start anew"
            ) from error
        return reason(error)
    if here >= 0:
        refuse_other(found, where, folder)
    newer = [copy for copy in found if copy.step > here]
    if found and not newer:
        print(f"the mirror {where} has step {found[-1].step}, {folder.path} has {here}: it is used")
    try:
        if newer:
            _restore(mirror, where, folder, staging, config, newer, here)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return ""


def refuse_other(found: Sequence[Copy], where: str, folder: Workdir) -> None:
    """Raises UserError if there are copies of another run than the one in `folder`."""
    run = copies.identify(folder)
    if any(copy.run != run for copy in found):
        raise UserError(
            f"--mirror {where} holds copies of another run than {folder.path}: choose another"
        )


def reason(error: Exception) -> str:
    """An error in a few words."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error).strip()
    return text.split("\n")[0][:200] or type(error).__name__


def _last_step(folder: Workdir) -> int:
    """The last step that the folder holds; -1 if there is nothing to resume from."""
    if not folder.has("run"):
        return -1
    result = [folder.read("result")["steps"]] if folder.has("result") else []
    return max([-1, *copies.steps(folder), *result])


def _restore(
    mirror: Copies,
    where: str,
    folder: Workdir,
    staging: Path,
    config: Config,
    newer: list[Copy],
    here: int,
) -> None:
    fetched: list[Copy] = []
    for copy in reversed(newer):
        if fetched and copy.run != fetched[0].run:
            continue
        try:
            _fetch(mirror, where, staging / copy.name, config, copy, checked=bool(fetched))
            fetched.append(copy)
        except (UserError, MemoryError):
            raise
        except Exception as error:  # as above
            shutil.rmtree(staging / copy.name, ignore_errors=True)
            print(
                f"copy {copy.name} in the mirror {where} is not whole ({reason(error)}); "
                "trying another",
                file=sys.stderr,
            )
    saved = [copy for copy in fetched if not copy.is_result]
    if not saved:
        if here < 0:
            names = ", ".join(copy.name for copy in newer)
            raise UserError(
                f"no copy in --mirror {where} is whole ({names}), and {folder.path} holds no "
                "checkpoint: choose another --mirror to start anew"
            )
        return
    # A result without the checkpoint that it was measured on would be half a run.
    latest = fetched[0] if fetched[0].step == saved[0].step else saved[0]
    _place(folder, staging, latest)
    had = f"had step {here}" if here >= 0 else "had no checkpoint"
    print(f"restored step {latest.step} from the mirror {where}; {folder.path} {had}")


def _fetch(
    mirror: Copies, where: str, into: Path, config: Config, copy: Copy, *, checked: bool
) -> None:
    """Downloads a copy. Raises UserError, before most of it, if its run has another config."""
    first = [file for file in copy.files if not file.startswith(CHECKPOINT)]
    _try(lambda: mirror.download(copy, first, into))
    if not checked:
        Workdir(into).check(config, f"--mirror {where}", "--mirror")
    rest = [file for file in copy.files if file.startswith(CHECKPOINT)]
    _try(lambda: mirror.download(copy, rest, into))


def _place(folder: Workdir, staging: Path, latest: Copy) -> None:
    """Moves what was fetched into the folder, in an order that may be cut off anywhere.

    The newest checkpoint comes last: as long as it is missing the mirror has more. Only with it is
    the run finished, if it is.
    """
    staged = staging / latest.name
    (folder.path / "result.json").unlink(missing_ok=True)
    files = {path.name for path in staged.iterdir() if path.is_file()}
    for name in (*sorted(files - {"run.json", "result.json"}), "run.json"):
        os.replace(staged / name, folder.path / name)
    folder.checkpoints.mkdir(exist_ok=True)
    for name in sorted(os.listdir(staging), key=copies.order):
        source, target = staging / name / CHECKPOINT, folder.checkpoints / name
        if source.is_dir():
            shutil.rmtree(target, ignore_errors=True)
            os.replace(source, target)
    if "result.json" in files:
        os.replace(staged / "result.json", folder.path / "result.json")


def _try(action: Callable[[], _T]) -> _T:
    """What `action` returns; an error that may pass is given some more tries."""
    for _ in range(_TRIES - 1):
        try:
            return action()
        except (FileNotFoundError, ImportError, NotWholeError):
            raise
        except Exception:  # as above
            time.sleep(PAUSE)
    return action()
