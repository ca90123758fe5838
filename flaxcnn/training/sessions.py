"""environment.json: what each session of a run was computed on, the last one last."""

import datetime
import json
from typing import Any

from flaxcnn.training.environment import environment
from flaxcnn.training.workdir import Workdir

_PACKAGES = ("flaxcnn", "jax", "jaxlib", "flax", "optax")


def read_sessions(workdir: Workdir) -> list[dict[str, Any]]:
    """`environment()` of each session so far; older versions kept the last one only."""
    if not workdir.has("environment"):
        return []
    found: Any = workdir.read("environment")
    return found if isinstance(found, list) else [found]


def begin_session(workdir: Workdir) -> list[str] | None:
    """Adds this session; returns what differs from the one before and may change bits.

    None if there was none before.
    """
    sessions = read_sessions(workdir)
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    session = json.loads(json.dumps(environment() | {"started": started}))
    workdir.write("environment", [*sessions, session])
    return compare_sessions(sessions[-1], session) if sessions else None


def compare_sessions(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Lines "jaxlib 0.9.0 -> 0.10.1" for each difference on which the bits of a run depend."""

    def facts(session: dict[str, Any]) -> dict[str, Any]:
        devices, versions = session["devices"], session["versions"]
        on_cpu = devices["platform"] == "cpu"
        return {
            "devices": f"{devices['count']} x {devices['kind']}",
            "CPU threads": session["threads"] if on_cpu else None,
            "machine type": session["machine_type"] if on_cpu else None,
            "XLA_FLAGS": session["variables"].get("XLA_FLAGS", ""),
        } | {name: versions.get(name) for name in _PACKAGES}

    old, new = facts(before), facts(now)
    return [f"{name} {old[name]} -> {new[name]}" for name in old if old[name] != new[name]]
