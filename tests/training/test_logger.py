"""What is read of a run's rows."""

import json

from flaxcnn.training.logger import read_confusions, read_rows
from flaxcnn.training.workdir import Workdir

ROWS = [
    {"step": 4, "split": "train", "epoch": 0.5, "loss": 1.0},
    {"step": 8, "split": "validation", "epoch": 1.0, "loss": 0.5},
]


def test_damaged_lines_are_left_out_and_counted(tmp_path, capsys):
    lines = [json.dumps(row).encode() for row in ROWS]
    torn = [lines[0].replace(b'"epoch"', b'"\xf1poch"'), b"\0" * 30, b"[1]", b'{"step": 9, "spl']
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([lines[0], *torn[:3], lines[1], torn[3]]))
    assert read_rows(Workdir(tmp_path)) == ROWS
    assert "metrics.jsonl: 3 damaged lines are left out" in capsys.readouterr().err
    assert read_confusions(Workdir(tmp_path)) == []
    (tmp_path / "confusions.jsonl").write_text('{"step": 4, "epoch": 1, "counts": [[1]]}\n{}\n')
    assert [row["counts"] for row in read_confusions(Workdir(tmp_path))] == [[[1]]]
