import sys
from pathlib import Path

import pytest

from flaxcnn.errors import UserError
from flaxcnn.training import Config
from flaxcnn.training.config_file import load_config, run_file

HEAD = "from flaxcnn.training import Config\n"
OPTIMIZER = (
    "import flaxcnn.training as f\nget_config = lambda: f.Config(optimizer=f.OptimizerConfig"
)
OLD = "from flaxcnn.training import CheckpointConfig"


def write(folder: Path, content: str) -> Path:
    (folder / "experiment.py").write_text(content)
    return folder / "experiment.py"


def test_the_function_of_a_file_and_what_is_beside_it(tmp_path):
    file = write(
        tmp_path,
        '"""Title"""\nfrom __future__ import annotations\nimport dataclasses\n'
        "@dataclasses.dataclass\nclass Case:\n    rate: float\n"
        "def get_study():\n    return Case(0.5)\n",
    )
    case, text = run_file(file, "get_study")
    assert (case.rate, text) == (0.5, "Title")
    # A second file of that name is another module, and neither hides one that is imported.
    (tmp_path / "other").mkdir()
    other = write(tmp_path / "other", "get_study = dict")
    assert run_file(other, "get_study") == ({}, "") and case == type(case)(0.5)
    assert "experiment" not in sys.modules


def test_a_config_file_is_read_and_validated(tmp_path):
    config = load_config(write(tmp_path, HEAD + "def get_config():\n    return Config(epochs=3)\n"))
    assert isinstance(config, Config) and config.epochs == 3


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("def", "{} cannot be read: SyntaxError: "),
        ("import nothing_like_this", "{} cannot be read: ModuleNotFoundError: No module named"),
        ("raise OSError('two\\nlines')", "{} cannot be read: OSError: two lines"),
        ("x = 3", "{} has no function get_config()"),
        ("get_config = 3", "{} has no function get_config()"),
        ("get_config = lambda: 1 / 0", "{} cannot be read: ZeroDivisionError: division by zero"),
        ("get_config = lambda: {}", "get_config() must return a flaxcnn Config, got dict"),
        (HEAD + "get_config = lambda: Config(epoch=3)", "{}: the config has no field epoch; did"),
        (OPTIMIZER + "(clip_norm=1.0))", "{}: optimizer.clip_norm is now optimizer.clip.norm"),
        (OPTIMIZER + "(schedule='step'))", "optimizer.schedule is now optimizer.schedule.name"),
        (OLD, "{}: checkpoint.every_steps is now run.save_every_steps, checkpoint.keep_last is"),
        (HEAD + "get_config = lambda: Config().optimizer.clip.nrm", "{}: the config has no field"),
        (HEAD + "get_config = lambda: Config(epochs=0)", "epochs must be at least 1, got 0"),
    ],
)
def test_a_wrong_file_is_told_in_one_line(content, line, tmp_path):
    file = write(tmp_path, content)
    before = set(sys.modules)
    with pytest.raises(UserError) as caught:
        load_config(file)
    assert str(caught.value).startswith(line.format(file))
    assert "\n" not in str(caught.value)
    if "cannot be read" in line:
        assert set(sys.modules) == before


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    for path in (tmp_path / "nowhere.py", tmp_path):
        with pytest.raises(UserError, match=f"^{path}: no such file$"):
            run_file(path, "get_study")
