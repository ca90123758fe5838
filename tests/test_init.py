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
    runs = [
        subprocess.run(
            [sys.executable, "-c", MEASURE],
            env=command_env,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for _ in range(3)
    ]
    loaded = {module.split(".")[0] for module in runs[0][1:]}
    assert "flaxcnn" in loaded and not loaded & set(HEAVY)
    assert min(float(run[0]) for run in runs) < 1.5
