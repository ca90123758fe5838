"""Studies: every case of a config with every seed, as one table with pictures."""

from flaxcnn.study.study import Run, Study, carry_out, grid, plan_runs

__all__ = ["Run", "Study", "carry_out", "grid", "plan_runs"]
