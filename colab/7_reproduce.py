# ---
# jupyter:
#   colab:
#     provenance: []
#   jupytext:
#     notebook_metadata_filter: accelerator,colab
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The same bits again: hash, kill, resume, verify
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/flaxcnn/flaxcnn/blob/main/colab/7_reproduce.ipynb)
#
# **What you will see:** fifty training steps that must give the bits recorded for your machine; a
# run that is killed and loses its machine, is resumed from a mirror, and ends with the same SHA-256
# of its parameters as one that was left alone; and an audit that does stretches of it again.
#
# **Runtime:** CPU, which costs nothing. Some minutes, no download: the data are the 1,797 digits of
# scikit-learn.

# %% [markdown]
# ## Install
#
# flaxcnn, and of what it needs only the packages that this runtime lacks. jax, NumPy and the rest
# stay as they are, so nothing has to be restarted.

# %%
import importlib.metadata
import importlib.util
import os
import subprocess
import sys

from packaging.requirements import Requirement

SOURCE = "https://github.com/flaxcnn/flaxcnn/archive/refs/heads/main.zip"
QUICK = os.environ.get("FLAXCNN_NOTEBOOK") == "quick"  # the small settings of the tests


def install(*arguments):
    """Add packages. A jax that pip replaced would compute on the CPU: it takes none along."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", *arguments]
    subprocess.run(command, check=True)


def find_missing(package):
    """What a package needs and this runtime lacks; nothing of a clone that is not installed."""
    missing = []
    for wanted in map(Requirement, importlib.metadata.requires(package) or []):
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(str(wanted))
            continue
        if not wanted.specifier.contains(version, prereleases=True):
            raise RuntimeError(
                f"{wanted.name} {version} is here and flaxcnn needs {wanted.specifier}: begin with "
                "a new runtime (Runtime > Disconnect and delete runtime), then see colab/README.md"
            )
    return missing


if importlib.util.find_spec("flaxcnn") is None:
    install(SOURCE)
    if missing := find_missing("flaxcnn"):
        install(*missing)

# %% [markdown]
# ## The command
#
# This notebook uses flaxcnn as in a terminal: each run is a process, which can be killed. The next
# cell says what is installed and on which devices it computes. If this runtime has a GPU or TPU
# and JAX does not use it, the cell stops and says why.


# %%
def flaxcnn(*arguments):
    """Run a command of flaxcnn and show what it says; its failure stops the notebook."""
    process = start(*arguments)
    for line in process.stdout:
        print(line, end="")
    if process.wait():
        raise RuntimeError(f"flaxcnn {arguments[0]} ended with status {process.returncode}")


def start(*arguments):
    command = [sys.executable, "-m", "flaxcnn", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


# In a process of its own: a TPU belongs to one process, and this one would keep it.
check = "from flaxcnn.training.environment import unused_accelerator as find; exit(find())"
checked = subprocess.run([sys.executable, "-c", check], stderr=subprocess.PIPE, text=True)
if checked.returncode:
    raise RuntimeError(checked.stderr.strip().splitlines()[-1])
flaxcnn("doctor")

# %% [markdown]
# ## Fifty steps against a recorded hash
#
# Bits depend on jaxlib, the kind of processor and the number of threads. `flaxcnn reproduce` takes
# 50 steps with one thread. If a hash is recorded for your jaxlib and processor, yours must equal
# it; if not, the losses must agree to 0.01 %.

# %%
if flaxcnn("reproduce"):
    raise RuntimeError(
        "this machine does not reproduce the fifty steps: see `flaxcnn doctor` above"
    )

# %% [markdown]
# ## A run that is left alone

# %%
EPOCHS = 6 if QUICK else 20
settings = ["train", "digits", f"--config.epochs={EPOCHS}"]

flaxcnn(*settings, "--workdir", "runs/whole")

# %% [markdown]
# ## The same run, killed, and its machine lost
#
# The same command in another folder, and with `--mirror`: each checkpoint is copied, beside the
# training, to a second folder, which on Colab would be one on Google Drive. As soon as a third of
# the epochs is there, the run gets SIGKILL, which no program can answer, and its own folder is
# removed: what Colab does to a session that it takes back.

# %%
import shutil
import time
from pathlib import Path

killed, mirror = Path("runs/killed"), Path("runs/mirror")
again = [*settings, "--workdir", str(killed), "--mirror", str(mirror)]


def copied():
    """The steps whose copies are whole: the manifest is written last."""
    return sorted(int(file.parent.name) for file in mirror.glob("[0-9]*/manifest.json"))


process = start(*again)
while max(copied(), default=0) < EPOCHS // 3 * 40:  # an epoch is 40 steps
    time.sleep(0.02)
    if process.poll() is not None:
        raise RuntimeError("the run ended before it was killed:\n" + process.stdout.read())
process.kill()
process.wait()
shutil.rmtree(killed)
killed_at = max(copied())
print("killed; of the run only the mirror is left, with the checkpoints of steps", *copied())

# %% [markdown]
# ## Resumed
#
# Nothing but the same command again.

# %%
flaxcnn(*again)

# %% [markdown]
# ## Are they equal?

# %%
import json

results = {
    name: json.loads(Path(f"runs/{name}/result.json").read_text()) for name in ("whole", "killed")
}
for name, result in results.items():
    print(f"{name:<7}{result['accuracy']:.4f}  {result['params_sha256']}")
if results["whole"]["params_sha256"] != results["killed"]["params_sha256"]:
    raise RuntimeError("the resumed run has other bits: please report it with the output of doctor")
print("the same bits")

# %% [markdown]
# Every loss on the way, too: the killed run's lie on the other's.

# %%
import matplotlib.pyplot as plt

figure, panel = plt.subplots(figsize=(8, 4))
for name, style in (("whole", {"linewidth": 5, "alpha": 0.35}), ("killed", {"linewidth": 1.2})):
    lines = Path(f"runs/{name}/metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row.get("split") == "train"]
    panel.plot([row["step"] for row in rows], [row["loss"] for row in rows], label=name, **style)
panel.axvline(killed_at, color="#D00000", linestyle="--", label="resumed from here")
panel.set(xlabel="step", ylabel="training loss")
panel.legend()
plt.show()

# %% [markdown]
# ## An audit
#
# Can a reader believe a finished run without training it again? `flaxcnn verify` takes random
# stretches between checkpoints that the run has kept, does their steps again and compares hashes.

# %%
flaxcnn("verify", str(killed))
