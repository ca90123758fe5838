import platform
import subprocess
import sys

import pytest

COUNT_FAULTS = """
import resource, sys
import numpy as np
from flaxcnn.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for i in range(4):
    if i == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty(2**24, np.float32).fill(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_large_arrays_come_without_fresh_pages(command_env):
    def faults(how: str) -> int:
        command = [sys.executable, "-c", COUNT_FAULTS, how]
        return int(subprocess.run(command, env=command_env, capture_output=True, check=True).stdout)

    assert faults("keep") < 200
    pages = 2 * 2**26 // 4096
    assert faults("leave") > pages / 1000  # even if the kernel hands out huge pages


def test_nothing_happens_on_another_system(monkeypatch):
    from flaxcnn.memory import keep_freed_memory

    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False
