"""The commands keep compiled programs, in a folder of the user's, within a bound, and say where."""

import os

import jax
import pytest

from flaxcnn.commands import compilation_cache, main
from flaxcnn.commands.compilation_cache import cache_folder, describe_cache, enable_cache, trim

COMPUTE = """
import os
os.environ.pop("TF_CPP_MIN_LOG_LEVEL", None)  # as it is for users
from flaxcnn.commands.compilation_cache import describe_cache, enable_cache
enable_cache()
import jax, jax.monitoring
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append("cache_hits" in event))
print(jax.jit(lambda x: x * 2 + 1)(20.5), any(hits))
print(describe_cache())
"""


def test_the_second_start_takes_what_the_first_compiled(run_command, tmp_path):
    """And nothing is printed on the way: one jaxlib has kilobytes to say of its own programs."""
    env = {"XDG_CACHE_HOME": str(tmp_path), "JAX_COMPILATION_CACHE_DIR": ""}
    runs = [run_command("-c", COMPUTE, **env) for _ in range(2)]
    assert [run.stdout.splitlines()[0] for run in runs] == ["42.0 False", "42.0 True"]
    assert [run.stderr for run in runs] == ["", ""]
    (folder,) = (tmp_path / "flaxcnn" / "compiled").iterdir()
    assert f"MB in {folder} (JAX_ENABLE_COMPILATION_CACHE=0" in runs[1].stdout


def test_the_folder_is_of_one_kind_of_processor_and_number_of_threads(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folders = set()
    for kind in ("x86_64-avx2 AuthenticAMD-25-1", "aarch64"):
        monkeypatch.setattr(compilation_cache, "machine_type", lambda kind=kind: kind)
        for threads in "12":
            monkeypatch.setenv("NPROC", threads)
            folders.add(cache_folder())
    assert len(folders) == 4 and {folder.parents[1].parent for folder in folders} == {tmp_path}
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/ada")
    assert str(cache_folder()).startswith("/home/ada/.cache/flaxcnn/")


@pytest.mark.parametrize(
    "setting",
    [("jax_compilation_cache_dir", "/elsewhere"), ("jax_enable_compilation_cache", False)],
)
def test_what_the_user_has_set_stays(monkeypatch, tmp_path, setting):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        jax.config.update(*setting)
        chosen = {name: getattr(jax.config, name) for name in SETTINGS}
        enable_cache()
        assert {name: getattr(jax.config, name) for name in SETTINGS} == chosen
        assert (describe_cache() == "not kept") == (setting[1] is False)
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
    assert not list(tmp_path.iterdir())


SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_enable_compilation_cache",
    "jax_persistent_cache_min_compile_time_secs",
)


def test_what_was_used_longest_ago_goes_first(tmp_path):
    for age, name in enumerate(("new", "used", "old", "oldest")):
        file = tmp_path / "kind" / f"{name}-cache"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(bytes(10))
        os.utime(file, (1000 - age, 0 if name == "used" else 1000 - age))
    (tmp_path / "note").write_bytes(bytes(100))
    trim(tmp_path, 25)
    left = sorted(file.name for file in tmp_path.rglob("*") if file.is_file())
    assert left == ["new-cache", "note", "used-cache"]


def test_every_command_has_it(monkeypatch, capsys):
    called = []
    monkeypatch.setattr(main, "enable_cache", lambda: called.append(True))
    assert main.main(["list", "optimizers"]) == 0
    assert called and capsys.readouterr().out
