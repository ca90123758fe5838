"""The README's commands are the ones that CI runs, and what it shows works."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_ci_runs_the_two_commands_of_the_first_screen():
    first_block = re.search(r"```bash\n(.*?)```", README, re.DOTALL)
    assert first_block is not None
    commands = first_block[1].strip().split("\n")
    assert len(commands) == 2
    assert README[: first_block.end()].count("\n") < 24
    ci = (ROOT / ".ci" / "run").read_text().split("\n")
    assert [line for line in ci if line in commands] == commands


def test_the_python_example_runs():
    example = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert example is not None
    names: dict = {}
    exec(example[1], names)
    assert names["logits"].shape == (1, 10)


def test_every_file_that_is_linked_exists():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    missing = [link for link in links if not (ROOT / link).exists()]
    assert not missing


def test_every_config_is_valid_and_says_how_to_run_it():
    import importlib.util

    from flaxcnn.training.config import validate

    configs = sorted((ROOT / "configs").glob("*.py"))
    assert configs
    for file in configs:
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        validate(module.get_config())
        command = "python train.py" if file.stem == "digits" else f"--config configs/{file.name}"
        assert command in module.__doc__
