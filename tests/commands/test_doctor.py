"""What the doctor prints, and its own sums against broken ones."""

import argparse

import jax
import pytest

from flaxcnn.commands import doctor


def test_the_numbers_are_right_here():
    errors = doctor.self_test()
    assert len(errors) == 3
    assert all(0 < error < 1e-6 for error in errors.values()), errors


@pytest.mark.parametrize(
    ("case", "module", "function"),
    [(0, jax.lax, "conv_general_dilated"), (1, jax, "grad"), (2, jax, "vmap")],
)
def test_wrong_numbers_are_an_error(monkeypatch, capsys, case, module, function):
    """With each of the functions broken in turn its own check fails, loudly."""
    right = getattr(module, function)

    def broken(*arguments, **kwargs):
        result = right(*arguments, **kwargs)
        if callable(result):
            return lambda *a: 1.001 * result(*a)
        return 1.001 * result

    monkeypatch.setattr(module, function, broken)
    assert list(doctor.self_test().values())[case] > doctor.SELF_TEST_TOLERANCE
    assert doctor.run(argparse.Namespace()) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("ERROR:") and "WRONG NUMBERS" in last


def test_nan_is_an_error(monkeypatch):
    monkeypatch.setattr(doctor, "self_test", lambda: {"convolution": float("nan")})
    assert [finding.level for finding in doctor.examine()][-1] == "error"


def test_report(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "self_test", lambda: {"convolution": 1e-7})
    warning = "an NVIDIA GPU is here (/dev/nvidia3)"
    monkeypatch.setattr(doctor, "find_warnings", lambda: [warning])
    assert doctor.run(argparse.Namespace()) == 0
    lines = capsys.readouterr().out.splitlines()
    topics = [line.split("  ")[0] for line in lines]
    for topic in ("python", "jaxlib", "grain", "devices", "machine type", "CPU threads"):
        assert topic in topics
    for setting in ("jax_default_prng_impl", "jax_enable_x64", "XLA_FLAGS"):
        assert setting in topics
    assert lines[-1] == f"WARNING: {warning}"
