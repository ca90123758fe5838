"""The command `flaxcnn predict`: what a run says of image files and folders of them."""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence

from PIL import Image

from flaxcnn.data.images import FILE_FORMATS
from flaxcnn.errors import UserError
from flaxcnn.exit_status import DONE, FAILED
from flaxcnn.training.inference import load_run


def run(args: argparse.Namespace) -> int:
    """Prints the answers of each batch as they come; exit status 1 if a file had to be skipped.

    Those are named at the end. Raises UserError if not one could be read.
    """
    if args.top < 1:
        raise UserError(f"--top must be at least 1, got {args.top}")
    trained_run, files = load_run(args.workdir, args.checkpoint), list(_find_files(args.images))
    task, bad, shown = trained_run.task, [], 0
    for file, answer in trained_run.predict(files, args.resize):
        if isinstance(answer, UserError):
            bad.append(str(answer))
            continue
        top = task.describe(answer, args.top)
        if args.json:
            print(", " if shown else "[", json.dumps({"image": file, "top": top}), sep="", end="")
        else:
            lines = map(task.format_entry, top)
            print(file, *(f"  {line}" for line in lines), sep="\n", flush=True)
            if not top:
                print("  no answer: the network's output for it is not finite")
        shown += 1
    if not shown:
        more = f" (and {len(bad) - 1} more files could not be read)" if len(bad) > 1 else ""
        raise UserError(bad[0] + more)
    if args.json:
        print("]")
    if bad:
        print(f"flaxcnn predict: skipped {len(bad)} of {len(files)} files:", file=sys.stderr)
        print(*(f"  {line}" for line in bad), sep="\n", file=sys.stderr)
    return FAILED if bad else DONE


def _find_files(paths: Sequence[str]) -> Iterator[str]:
    """The files themselves, and the images in folders and their folders, in order of name."""
    formats = Image.registered_extensions()
    for path in paths:
        if not os.path.isdir(path):
            yield path
            continue
        found = [
            os.path.join(folder, name)
            for folder, _, names in os.walk(path)
            for name in names
            if formats.get(os.path.splitext(name)[1].lower()) in FILE_FORMATS
            and not name.startswith(".")
        ]
        if not found:
            raise UserError(f"{path} holds no images")
        yield from sorted(found)
