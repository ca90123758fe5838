"""The search of docs/tools.md, with the real Optuna where it is installed."""

import re
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "docs" / "tools.md"


@pytest.mark.zoo
@pytest.mark.filterwarnings("default")  # Optuna's are not ours
def test_the_documents_search_prunes_trials_and_is_resumed(tmp_path, monkeypatch, capsys):
    optuna = pytest.importorskip("optuna", reason="optuna is not installed (docs/tools.md)")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(
        r"```python\n(import flaxcnn\nimport optuna.*?)```", TOOLS.read_text(), re.S
    )
    assert len(code.splitlines()) <= 28 and code.count("\n\n\n") == 2
    grid = '{"learning_rate": [1e-4, 0.01], "optimizer": ["momentum"]}'
    chosen = f"sampler=optuna.samplers.GridSampler({grid}), "
    chosen += "pruner=optuna.pruners.ThresholdPruner(0.5)"
    for old, new in (
        ("n_trials=20", "n_trials=1"),
        ("config.epochs = 8", "config.epochs = 2"),
        ('direction="maximize"', f'direction="maximize", {chosen}'),
    ):
        assert old in code
        code = code.replace(old, new)
    for number in (1, 2):
        exec(compile(code, str(TOOLS), "exec"), {"__name__": "tools"})
        study = optuna.load_study(study_name="digits", storage="sqlite:///optuna.db")
        assert len(study.trials) == number
    states = [trial.state.name for trial in study.trials]
    assert {"COMPLETE", "PRUNED"} == set(states)
    for trial in study.trials:
        folder = tmp_path / "runs" / "optuna" / str(trial.number)
        assert (folder / "result.json").exists() == (trial.state.name == "COMPLETE")
        assert (min(trial.intermediate_values.values()) < 0.5) == (trial.state.name == "PRUNED")
