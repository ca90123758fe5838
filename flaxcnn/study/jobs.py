"""The runs of a study side by side, each in a process of its own with a share of the CPU's cores.

A small network keeps one core busy and gains little from a second: two runs side by side are then
nearly twice as fast as one after the other. The last bits of a run on CPU depend on its threads,
so that NPROC=<cores per job> repeats one of these runs bit for bit.
"""

import multiprocessing
import os
import signal
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import jax
from tqdm.auto import tqdm

from flaxcnn.errors import UserError
from flaxcnn.study.study import Run
from flaxcnn.tasks.registry import find_task
from flaxcnn.training.environment import count_threads
from flaxcnn.training.loop import train
from flaxcnn.training.stop_signal import StopSignal
from flaxcnn.training.workdir import Workdir

Job = tuple[Run, BaseProcess, Connection]


def run_parallel(runs: Sequence[Run], jobs: int) -> bool:
    """Carries out `runs`, up to `jobs` at a time; False if one was asked to stop (it is saved).

    Raises UserError naming the case of a run that cannot be done, after the others of the moment
    have ended, and without beginning new ones.
    """
    threads = count_threads()
    if not 1 <= jobs <= threads:
        raise UserError(f"--jobs must be in 1..{threads}, the cores of this machine, got {jobs}")
    if jax.default_backend() != "cpu":
        raise UserError(f"--jobs shares out cores of a CPU; JAX is on {jax.default_backend()}")
    waiting, working, failures = list(runs), [], []
    with StopSignal() as stop, tqdm(total=len(runs), unit=" runs", disable=None) as bar:
        asked = False
        while working or (waiting and not stop.requested and not failures):
            while waiting and len(working) < jobs and not stop.requested and not failures:
                working.append(_start(waiting.pop(0), threads // jobs))
            if stop.requested and not asked:
                asked = True
                for _, process, _ in working:
                    process.terminate()
            wait([process.sentinel for _, process, _ in working], timeout=0.2)
            for job in [job for job in working if not job[1].is_alive()]:
                working.remove(job)
                run, answer = job[0], _ask(job)
                if isinstance(answer, str):
                    failures.append(f"case {run.case!r}, seed {run.config.seed}: {answer}")
                elif isinstance(answer, float):
                    bar.update()
                    figure = find_task(run.config.task.name).monitor.name
                    bar.write(f"{run.case}, seed {run.config.seed}: {figure} {answer:.4f}")
    if failures:
        raise UserError("; ".join(failures))
    return all(Workdir(run.workdir).has("result") for run in runs)


def _start(run: Run, threads: int) -> Job:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(run, threads, theirs))
    process.start()
    theirs.close()
    return run, process, ours


def _work(run: Run, threads: int, answer: Connection) -> None:
    """In a new process: trains `run` and sends its figure, None if stopped, or what is wrong."""
    os.setsid()  # Ctrl-C reaches the parent alone, which then asks each job once
    os.environ["NPROC"] = str(threads)  # read when JAX makes its CPU client
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            result = train(run.config, run.workdir)
        figure = find_task(run.config.task.name).monitor.name
        answer.send(None if result is None else result[figure])
    except UserError as error:
        answer.send(str(error))


def _ask(job: Job) -> float | str | None:
    """What the ended process of `job` sent; if nothing, that it broke."""
    _, process, connection = job
    with connection:
        try:
            return connection.recv()
        except EOFError:
            if process.exitcode == -signal.SIGTERM:  # asked before it had begun
                return None
            return f"its process ended with exit status {process.exitcode}"
