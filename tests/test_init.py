"""`import flaxcnn` loads nothing; all its names cost little more than `import flax.linen`."""

import subprocess
import sys

import pytest

import flaxcnn

HEAVY = ("cv2", "grain", "matplotlib", "orbax", "sklearn", "tensorflow", "tensorflow_datasets")
MEASURE = """
import sys, time
start = time.perf_counter()
import flax.linen
middle = time.perf_counter()
import flaxcnn
for name in set(flaxcnn.__all__) - {"from_pretrained", "load"}:  # which decode images
    getattr(flaxcnn, name)
end = time.perf_counter()
print((end - start) / (middle - start), *sys.modules)
"""
ALONE = "import sys, flaxcnn; print(*sys.modules)"


def test_import_loads_nothing(command_env):
    """So that the commands can speak to jaxlib before it is loaded (commands/__init__.py)."""
    done = subprocess.run(
        [sys.executable, "-c", ALONE], env=command_env, capture_output=True, text=True, check=True
    )
    assert not {"flax", "jax", "jaxlib", "numpy"} & set(done.stdout.split())


def test_names_are_there_when_they_are_asked_for():
    for name in (*flaxcnn.__all__, "layers", "models", "training"):
        assert name in dir(flaxcnn) and getattr(flaxcnn, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        flaxcnn.nonsense  # noqa: B018


def test_import_is_light(command_env):
    for _ in range(3):  # another process may have disturbed one or two
        ratio, *modules = subprocess.run(
            [sys.executable, "-c", MEASURE],
            env=command_env,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        loaded = {module.split(".")[0] for module in modules}
        assert "flaxcnn" in loaded and not loaded & set(HEAVY)
        if float(ratio) < 1.5:
            return
    raise AssertionError(f"{ratio} times as long as flax.linen")
