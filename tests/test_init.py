"""`import flaxcnn` is light: it costs little more than `import flax.linen`, and loads no more."""

import subprocess
import sys

HEAVY = ("cv2", "grain", "matplotlib", "orbax", "sklearn", "tensorflow", "tensorflow_datasets")
MEASURE = """
import sys, time
start = time.perf_counter()
import flax.linen
middle = time.perf_counter()
import flaxcnn
end = time.perf_counter()
print((end - start) / (middle - start), *sys.modules)
"""


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
