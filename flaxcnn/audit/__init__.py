"""Whether a run is what it says, and where two runs differ: by doing parts of them again."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from flaxcnn.training.config import Config

if TYPE_CHECKING:
    from flaxcnn.audit.divergence import Divergence

__all__ = ["diff", "record", "verify"]


def verify(
    workdir: str | Path, *, segments: int | None = 5, seed: int | None = None
) -> dict[str, Any]:
    """Audits the run in the folder `workdir`, which may still be training.

    Its rows and checkpoints are compared with the hashes in metrics.jsonl, and stretches of it,
    from a checkpoint (or step 0) to the next hash, are done again on this machine. Where machine,
    versions or threads are not those of the run and the bits differ, losses are compared within a
    tolerance.

    Args:
      workdir: the folder of a run.
      segments: how many stretches, drawn at random; None does the whole run again, from each
        checkpoint to the next.
      seed: of the draw; random unless given.

    Returns:
      What is also written to certificate.json: `result` ("bits", "losses" or "failed"), `problems`
      (one line each, empty if it is verified), `segments` (first and last step, outcome), `run`,
      `environment`, `changes` (of the machine since the run), `tolerance`, `seed`, ...

    Raises:
      UserError: no run, no checkpoint, or data that is no longer there.
    """
    from flaxcnn.audit.certificate import verify

    return verify(workdir, segments=segments, seed=seed)


def diff(a: str | Path, b: str | Path, *, tolerance: float = 0.0) -> "Divergence":
    """The first divergence of two runs (folders), or of two files of `record`.

    Of runs config, data, environment and the hashes of their states are compared; the steps in
    which they part are done again from their last common checkpoint, one at a time, and compared
    array by array. Nothing is changed in their folders.

    Args:
      a: a run, or a file.
      b: another.
      tolerance: of files only: arrays that differ by at most this share of their largest value
        count as the same.

    Returns:
      A `Divergence`: `same`, `config`, `data`, `environment` (lines "name: A -> B"), `step`,
      `differences` (by array: name, count, distance in units in the last place, ...), `cause`.

    Raises:
      UserError: what is neither two runs nor two files, or cannot be read.
    """
    from flaxcnn.audit.divergence import diff

    return diff(a, b, tolerance=tolerance)


def record(
    target: Config | str | Path, file: str | Path, *, steps: int = 2, start: int = 0
) -> dict[str, Any]:
    """Writes what a network's first training steps compute to `file`, for `diff`.

    Args:
      target: a config, or the folder of a run.
      file: a NumPy .npz file; docs/verify.md describes the names of its arrays.
      steps: how many. Of large networks as many examples of a batch are kept as fit into 1 GiB.
      start: the step of a checkpoint of the run to start from, or 0.

    Returns:
      What the file says about itself: `config`, `data`, `environment`, `first_step`.

    Raises:
      UserError: no run, no such checkpoint, or a file that cannot be written.
    """
    from flaxcnn.audit.trace import record

    return record(target, file, steps=steps, start=start)
