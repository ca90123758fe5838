"""The folder of one run: what it holds, and whether a command may resume it.

config.json (what was asked for), run.json (what was found: classes, normalisation, steps per
call), splits.json (of a folder of images: which file is in which split), environment.json,
metrics.jsonl, confusions.jsonl (the confusion matrix of each validation), TensorBoard events,
saved/ (the checkpoints; `checkpoints/` in older runs, a name that Colab's file browser has hidden,
colabtools#621), and at the end predictions.npz (what the task predicts and expects of every
example, its loss, and its path in the folder or index; of classification label, -1 for none,
probability and true_label), the pictures and result.json. certificate.json is that
of the last `flaxcnn verify`.
JSON files appear whole or not at all.
"""

import contextlib
import dataclasses
import errno
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flaxcnn.data.record import Record, hash_files
from flaxcnn.data.sources import absolute_source, check_source
from flaxcnn.errors import UserError
from flaxcnn.training.config import Config
from flaxcnn.training.config_check import validate
from flaxcnn.training.config_json import VERSION, differences, from_dict, to_dict
from flaxcnn.training.lock import Lock, hold, release
from flaxcnn.training.weights_spec import absolute_weights

# What mounts say that cannot rename over a file, or not one that is open.
_NO_REPLACE = (errno.EEXIST, errno.EPERM, errno.EACCES, errno.EBUSY, errno.ENOSYS, errno.EOPNOTSUPP)


class Workdir:
    """Names of the files of the run in `path`. Making one changes nothing on disk.

    Raises UserError for a place in an object store.
    """

    def __init__(self, path: str | Path):
        if "://" in str(path):
            raise UserError(
                f"{path}: a run's folder must be on a file system; --mirror keeps a run in an "
                "object store, and resumes it from there"
            )
        self.path = Path(os.path.expanduser(path))
        older, newer = self.path / "checkpoints", self.path / "saved"
        # Older versions made an empty one by looking: what is in the newer counts.
        self.checkpoints = older if older.is_dir() and not newer.is_dir() else newer
        self.metrics = self.path / "metrics.jsonl"
        self.confusions = self.path / "confusions.jsonl"
        self.examples = self.path / "predictions.npz"

    @contextlib.contextmanager
    def claim(self, config: Config) -> Iterator[Lock]:
        """Creates the folder for `config` and locks it while the run uses it.

        It belongs to `config` once run.json is there; a run that fails before leaves nothing. A
        `data.source` that is another folder is the same if it holds the same files, and what `run`
        says may change.
        Raises UserError if it belongs to another config, naming the fields that differ, if
        another process is training in it, or if the disk fills up while the run uses it.
        """
        if self.has("run") or (self.has("config") and self.read("config").get("stages")):
            self.check(config, str(self.path), "--workdir")
        self.make()
        with hold(self.path) as lock:
            try:
                yield lock
            except Exception as error:
                if not _is_full_disk(error):
                    raise
                raise UserError(
                    f"no space left on the disk of --workdir {self.path}; free some and run the "
                    "same command again: it resumes from the last complete checkpoint"
                ) from error
            finally:
                if not self.has("run"):
                    release(self.path)
                    if not any(self.path.iterdir()):
                        self.path.rmdir()

    def make(self) -> None:
        """Makes the folder. Raises UserError if it cannot be written to."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / ".lock").touch()
        except OSError as error:
            raise UserError(f"cannot write to --workdir {self.path}: {error.strerror}") from error

    def check(self, config: Config, name: str, flag: str) -> None:
        """Raises UserError if the run here, given by `flag` and called `name`, has another config.

        The error names the fields that differ, or what has changed in a data set that was moved.
        """
        before, after = (to_dict(absolute(of)) for of in (self.config(), config))
        for values in (before, after):
            del values["run"]  # changes no result
        source = after["data"]["source"]
        moved = source != before["data"]["source"] and self.has("splits")
        if moved:
            before["data"]["source"] = source
        lines = differences(before, after)
        if lines:
            raise UserError(
                f"{name} holds a run with another config ({'; '.join(lines)}); "
                f"choose another {flag} or give the same config"
            )
        if moved:
            check_source(source, self.record())

    def config(self) -> Config:
        """The run's config; an older version's is reported on stderr.

        Raises UserError if there is no run here, or one that a newer flaxcnn has begun.
        """
        values = self.read("config")
        config = from_dict(values)
        validate(config)
        if (version := values.get("version", 1)) != VERSION:
            print(
                f"WARNING: {self._file('config.json')} is of version {version}: read as version "
                f"{VERSION}",
                file=sys.stderr,
            )
        return config

    def record(self) -> Record:
        """What the run has recorded of its data set. Raises UserError if it has been changed."""
        facts = self.read("run")
        files = self.read("splits") if self.has("splits") else {}
        version = facts.get("data_version", "")
        if files and hash_files(files) != version:
            raise UserError(f"{self._file('splits.json')} is not what the run has written")
        return Record(tuple(facts["class_names"]), version, files)

    def contents(self, pictures: Sequence[str]) -> list[str]:
        """What there is of a run, in the order in which it came; folders end in "/"."""
        names = "config environment run splits result certificate"
        paths = [*(self._file(f"{name}.json") for name in names.split()), self.metrics]
        later = (self.confusions, self.examples, *map(self._file, pictures))
        paths = [*paths, self._file("tensorboard"), self.checkpoints, *later]
        return [f"{path.name}{'/' * path.is_dir()}" for path in paths if path.exists()]

    def read(self, name: str) -> dict[str, Any]:
        """The content of `<name>.json`. Raises UserError if it is missing or damaged."""
        file = self._file(f"{name}.json")
        try:
            return json.loads(file.read_text())
        except FileNotFoundError as error:
            raise UserError(f"{self.path} holds no run: {file.name} is missing") from error
        except ValueError as error:
            # Where a file cannot be replaced in one step, a kill leaves the new one beside it.
            with contextlib.suppress(OSError, ValueError):
                return json.loads(self._file(f".{name}.json.tmp").read_text())
            raise UserError(f"{file} is not valid JSON: {error}") from error

    def has(self, name: str) -> bool:
        """Whether `<name>.json` has been written."""
        return self._file(f"{name}.json").exists()

    def write(self, name: str, content: dict[str, Any] | list[Any]) -> None:
        """Replaces `<name>.json` in one atomic step, where the file system has that."""
        temporary = self._file(f".{name}.json.tmp")
        temporary.write_text(json.dumps(content, indent=2) + "\n")
        replace(temporary, self._file(f"{name}.json"))

    def _file(self, name: str) -> Path:
        return self.path / name


def absolute(config: Config) -> Config:
    """The config with its paths as they can be used from any folder."""
    data = dataclasses.replace(config.data, source=absolute_source(config.data.source))
    weights = absolute_weights(config.model.weights)
    model = dataclasses.replace(config.model, weights=weights)
    mask = config.optimizer.mask_file
    mask = str(Path(mask).expanduser().absolute()) if mask else ""
    optimizer = dataclasses.replace(config.optimizer, mask_file=mask)
    return dataclasses.replace(config, data=data, model=model, optimizer=optimizer)


def replace(source: Path, target: Path) -> None:
    """Moves `source` over the file `target`: in one step, or by copying where that is refused."""
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno not in _NO_REPLACE:
            raise
        shutil.copyfile(source, target)
        source.unlink()


def _is_full_disk(error: BaseException | None) -> bool:
    """Whether an error goes back to a full disk, however orbax and tensorstore wrapped it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
