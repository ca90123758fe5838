"""The command `flaxcnn doctor`: what this installation is, and what is wrong with it."""

import argparse
import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from flaxcnn.commands.compilation_cache import describe_cache
from flaxcnn.training.environment import environment, find_warnings

SELF_TEST_TOLERANCE = 1e-4  # of the largest element, with float32 sums in any order


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of `flaxcnn doctor`; `level` is "ok", "warning" or "error"."""

    topic: str
    text: str
    level: str = "ok"


def examine() -> list[Finding]:
    """Look at versions, devices, threads and settings, and check a few computed numbers."""
    env = environment()
    devices = env["devices"]
    findings = [
        Finding("python", f"{env['python']} on {env['os']}"),
        *(Finding(name, version or "not installed") for name, version in env["versions"].items()),
        Finding("devices", f"{devices['count']} x {devices['kind']} ({devices['platform']})"),
        Finding("machine type", env["machine_type"]),
        Finding("CPU threads", f"{env['threads']} (NPROC sets it; the bits depend on it)"),
        *(Finding(name, str(value)) for name, value in env["settings"].items()),
        Finding("compiled programs", describe_cache()),
        *(Finding(name, value) for name, value in env["variables"].items()),
    ]
    findings += [Finding("installation", text, "warning") for text in find_warnings()]
    for name, error in self_test().items():
        passed = error <= SELF_TEST_TOLERANCE  # False for NaN
        text = f"self-test of {name}: largest error {error:.1e}, allowed {SELF_TEST_TOLERANCE:.0e}"
        wrong = "; this installation computes WRONG NUMBERS, do not train with it"
        findings.append(
            Finding("numbers", text if passed else text + wrong, "ok" if passed else "error")
        )
    return findings


def format_findings(findings: Sequence[Finding]) -> str:
    """Lay the findings out one per line, those that are not ok last and marked by their level."""
    width = max(len(finding.topic) for finding in findings)
    lines = [f"{f.topic:<{width}}  {f.text}" for f in findings if f.level == "ok"]
    lines += [f"{f.level.upper()}: {f.text}" for f in findings if f.level != "ok"]
    return "\n".join(lines)


def run(args: argparse.Namespace) -> int:
    """Print what `examine` finds; 1 if the numbers are wrong, else 0."""
    findings = examine()
    print(format_findings(findings))
    return int(any(finding.level == "error" for finding in findings))


def self_test() -> dict[str, float]:
    """Compare what a CNN is made of, compiled, with NumPy in float64.

    Largest error over largest element: of a convolution, of its kernel gradient inside `lax.scan`,
    and of a vmapped matrix-vector product with a sum over 40,000 rows, which jaxlib 0.10.2 gets
    wrong on CPU (jax#39103: float32 from 32,769 rows on).
    """
    rng = np.random.default_rng(0)
    images = rng.normal(size=(3, 4, 10, 10, 3))  # 3 batches of 4
    kernel = rng.normal(size=(3, 3, 3, 8))
    matrix, rows = rng.normal(size=(3, 3)), rng.normal(size=(40_000, 3))

    def convolve(x, k):
        return jax.lax.conv_general_dilated(
            x, k, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def half_square_sum(k, x):
        return 0.5 * jnp.sum(convolve(x, k) ** 2)

    def sum_gradients(x, k):
        step = jax.grad(half_square_sum)
        return jax.lax.scan(lambda total, xi: (total + step(k, xi), None), jnp.zeros_like(k), x)[0]

    def square_norms(a, x):
        return jax.vmap(lambda row: jnp.sum((a @ row) ** 2))(x)

    taps = [(i, j, images[:, :, i : i + 8, j : j + 8]) for i in range(3) for j in range(3)]
    y = np.sum([np.einsum("bnhwc,co->bnhwo", x, kernel[i, j]) for i, j, x in taps], axis=0)
    gradient = np.zeros_like(kernel)
    for i, j, x in taps:
        gradient[i, j] = np.einsum("bnhwc,bnhwo->co", x, y)
    cases = {
        "convolution": (convolve, (images[0], kernel), y[0]),
        "convolution gradient in a loop": (sum_gradients, (images, kernel), gradient),
        "vmapped product and sum": (
            square_norms,
            (matrix, rows),
            ((rows @ matrix.T) ** 2).sum(-1),
        ),
    }
    errors = {}
    # GPUs and TPUs would by default round the factors to fewer bits, as meant.
    with jax.default_matmul_precision("highest"):
        for name, (function, arguments, expected) in cases.items():
            got = jax.jit(function)(*(jnp.asarray(a, jnp.float32) for a in arguments))
            error = np.abs(np.asarray(got, np.float64) - expected).max()
            errors[name] = float(error / np.abs(expected).max())
    return errors
