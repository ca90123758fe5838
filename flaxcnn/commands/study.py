"""The command `flaxcnn study`: trains every case of a study with every seed, writes its report."""

import argparse
from pathlib import Path

from flaxcnn.exit_status import DONE
from flaxcnn.study import carry_out, plan_runs
from flaxcnn.study.jobs import run_parallel
from flaxcnn.study.report import write_report
from flaxcnn.training.config_file import find_file, run_file
from flaxcnn.training.stop_signal import StopSignal


def run(args: argparse.Namespace) -> int:
    """Trains every case of a study with every seed, and writes its report."""
    file = find_file(args.file, "study")
    study, text = run_file(file, "get_study")
    suffix = "-quick" if args.quick else ""
    workdir = Path(args.workdir or Path("runs", "studies", file.stem + suffix))
    runs = plan_runs(study, workdir, quick=args.quick)
    with StopSignal() as signals:
        done = carry_out(runs) if args.jobs == 1 else run_parallel(runs, args.jobs)
    if not done:
        print(f"stopped at a saved step; the same command again resumes ({workdir})")
        return signals.status
    jobs = f" --jobs {args.jobs}" if args.jobs != 1 else ""
    command = f"flaxcnn study {args.file}{' --quick' if args.quick else ''}{jobs}"
    folder = Path(args.report or workdir)
    text = text or file.stem
    path = write_report(study, runs, text, command, folder, file.stem, quick=args.quick)
    print(f"{path.read_text()}\nin {path.parent}: {file.stem}.md, .json and pictures")
    return DONE
