"""CPU-seconds of each test file, printed at the end of a run, and the limit of a whole run.

Seconds of user and system time, child processes included: on a busy machine they vary far less
than the clock's. Machines differ, too, so the limit is a multiple of a fixed piece of work, tracing
and compiling a small network of Flax's own, which is timed about once a minute of the same run.
"""

import os
import statistics
from collections import Counter

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

# The whole default run may take as much time as this many pieces of the fixed work: 640 CPU-seconds
# at the 0.23 that a piece takes on a quiet machine with two cores (AMD EPYC, AVX-512; jaxlib 0.10.1
# with conftest's flags; without them it takes 0.7). 2026-11-26: 578 CPU-seconds, 2,514 pieces; the
# bound of the whole is 900.
LIMIT = 2800
EVERY = 60.0  # CPU-seconds of a process between two pieces


def spent() -> float:
    """CPU-seconds of this process and of its children that have ended."""
    return sum(os.times()[:4])


class _Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        for features in (8, 8, 16, 16, 32, 32):
            x = nn.Conv(features, (3, 3), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=False)(x))
        return nn.Dense(10)(x.mean((1, 2)))


def do_fixed_work() -> None:
    """Traces and compiles the gradients of a small network, which no cache has."""
    model, images = _Network(), jnp.zeros((4, 16, 16, 3))
    unique = 1 + int.from_bytes(os.urandom(2), "big") * 2.0**-16  # no two programs are equal
    variables = jax.eval_shape(model.init, jax.random.key(0), images)

    def loss(variables):
        logits, updates = model.apply(variables, images, mutable=["batch_stats"])
        return (unique * logits**2).sum(), updates

    threshold = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)
    try:
        jax.jit(jax.grad(loss, has_aux=True)).lower(variables).compile()
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", threshold)


class CpuSeconds:
    """The plugin: each process of a run counts its own, the one that prints adds them up."""

    def __init__(self, config: pytest.Config):
        self.config = config
        self.files: Counter[str] = Counter()
        self.works: list[float] = []  # seconds of each piece of the fixed work
        self.last = -EVERY
        self.others = False  # whether the tests run in other processes

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        if spent() - self.last > EVERY:
            if not self.works:
                do_fixed_work()  # the first in a process takes longer
            start = spent()
            do_fixed_work()
            self.last = spent()
            self.works.append(self.last - start)
        start = spent()
        try:
            return (yield)
        finally:
            self.files[item.location[0]] += spent() - start

    def pytest_sessionfinish(self, session):
        # Processes of pytest-xdist may have been waited for by now, or not: they count themselves.
        here = sum(os.times()[:2]) if self.others else spent() - self.files.total()
        self.files["(imports and the rest)"] += here
        if hasattr(self.config, "workeroutput"):
            self.config.workeroutput["cpu_seconds"] = dict(self.files), self.works
        elif self._is_too_much() and not session.exitstatus:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node):
        """A process of pytest-xdist has ended."""
        files, works = getattr(node, "workeroutput", {}).get("cpu_seconds", ({}, []))
        self.others = True
        self.files.update(files)
        self.works += works

    def _is_too_much(self) -> bool:
        return (
            not self.config.option.markexpr
            and bool(self.works)
            and self.files.total() > LIMIT * statistics.median(self.works)
        )

    def pytest_terminal_summary(self, terminalreporter):
        if not self.works:
            return
        work = statistics.median(self.works)
        total = self.files.total()
        report = terminalreporter
        report.section("CPU-seconds by file")
        short = {name: seconds for name, seconds in self.files.items() if seconds < 1}
        for name, seconds in self.files.most_common(len(self.files) - len(short)):
            report.line(f"{seconds:7.1f} {name}")
        report.line(f"{sum(short.values()):7.1f} {len(short)} others")
        report.line(
            f"{total:7.1f} together, {total / work:.0f} times a fixed piece of work"
            f" ({work:.2f} s, timed {len(self.works)} times); the limit is {LIMIT} times"
        )
        if self._is_too_much():
            report.line("The tests take too long: tests/cpu_seconds.py", red=True)
