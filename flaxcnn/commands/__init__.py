"""What the terminal sees: one file per command, and main.py with the parser."""

import importlib.metadata
import os

# From programs in the compilation cache this jaxlib reports as errors, on AVX-512 and by kilobytes,
# that the processor lacks LLVM's preferences. It reads the variable when it is loaded.
if importlib.metadata.version("jaxlib") == "0.10.1":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
