"""The limit of a whole run counts pieces of the fixed work, and only what runs by default."""

from types import SimpleNamespace

import pytest


@pytest.fixture
def make_plugin(pytestconfig):
    kind = type(pytestconfig.pluginmanager.get_plugin("cpu_seconds"))

    def make(markexpr="", **attributes):
        plugin = kind(SimpleNamespace(option=SimpleNamespace(markexpr=markexpr, keyword="")))
        plugin.others = True  # tests that other processes ran, which say what they took
        for files in ({"tests/test_a.py": 1.5}, {"tests/test_b.py": 2.5, "tests/test_c.py": 0.2}):
            output = {"cpu_seconds": (files, [2.0, 1e-3])}
            plugin.pytest_testnodedown(SimpleNamespace(workeroutput=output))
        return plugin

    return make


def finish(plugin, status=pytest.ExitCode.OK):
    session = SimpleNamespace(exitstatus=status)
    plugin.pytest_sessionfinish(session)
    return session.exitstatus


def test_a_run_above_the_limit_fails(make_plugin):
    assert finish(make_plugin()) == pytest.ExitCode.OK
    slow = make_plugin()
    slow.works = [1e-3, 1e-3, 2.0]  # the median: one piece may have been disturbed
    assert finish(slow) == pytest.ExitCode.TESTS_FAILED
    assert finish(slow, pytest.ExitCode.INTERRUPTED) == pytest.ExitCode.INTERRUPTED
    for_a_tier = make_plugin("zoo")
    for_a_tier.works = slow.works
    assert finish(for_a_tier) == pytest.ExitCode.OK


def test_files_are_listed_by_their_time(make_plugin):
    lines = []
    report = SimpleNamespace(section=lines.append, line=lambda text, **_: lines.append(text))
    make_plugin().pytest_terminal_summary(report)
    assert lines[1:4] == ["    2.5 tests/test_b.py", "    1.5 tests/test_a.py", "    0.2 1 others"]
    assert lines[4].startswith("    4.2 together, 4 times a fixed piece of work (1.00 s")
