"""The rules of tests/requirements.py, each tried in a small test run of its own."""

from pathlib import Path

import pytest

from tests import conftest, requirements

pytest_plugins = ["pytester"]

NEEDS_PROMETHEUS = """
import pytest

@pytest.mark.needs("prometheus")
def test_first():
    pass

@pytest.mark.needs("prometheus", "promtool")
def test_second():
    pass

def test_third():
    pass
"""

READS_UPSTREAM = """
def test_reads(upstream):
    assert (upstream / "windows").is_dir()

def test_reads_nothing():
    pass
"""


@pytest.fixture
def inner(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A test run with our rules, no program on PATH and no folder named."""
    for variable in ("REQUIRE_ALL", "UPSTREAM", "TESTBED"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", str(pytester.mkdir("bin")))
    pytester.makeini("[pytest]\nmarkers =\n    needs\n    upstream\naddopts = -p tests.requirements")
    return pytester


def put_on_path(inner: pytest.Pytester, *names: str) -> None:
    for name in names:
        program = inner.path / "bin" / name
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)


def test_missing_program_skips_in_one_line_with_the_command(inner: pytest.Pytester) -> None:
    inner.makepyfile(NEEDS_PROMETHEUS)

    result = inner.runpytest_inprocess("-rs")

    result.assert_outcomes(passed=1, skipped=2)
    said = [line for line in result.outlines if "apt-get" in line]
    assert len(said) == 1
    assert said[0].startswith("SKIPPED [2] ")
    assert said[0].endswith("prometheus is missing: apt-get install prometheus")


def test_missing_program_fails_where_all_is_required(
    inner: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUIRE_ALL", "1")
    inner.makepyfile(NEEDS_PROMETHEUS)

    result = inner.runpytest_inprocess()

    result.assert_outcomes(passed=1, errors=2)
    result.stdout.fnmatch_lines(["*prometheus is missing: apt-get install prometheus (REQUIRE_ALL=1)"])


def test_present_program_lets_the_test_run(inner: pytest.Pytester) -> None:
    put_on_path(inner, "prometheus", "promtool")
    inner.makepyfile(NEEDS_PROMETHEUS)

    inner.runpytest_inprocess().assert_outcomes(passed=3)


def test_each_of_several_programs_counts(inner: pytest.Pytester) -> None:
    put_on_path(inner, "prometheus")
    inner.makepyfile(NEEDS_PROMETHEUS)

    result = inner.runpytest_inprocess("-rs")

    result.assert_outcomes(passed=2, skipped=1)
    result.stdout.fnmatch_lines(["*promtool is missing: apt-get install prometheus"])


def test_unknown_program_is_an_error(inner: pytest.Pytester) -> None:
    inner.makepyfile(NEEDS_PROMETHEUS.replace('"promtool"', '"promtol"'))
    put_on_path(inner, "prometheus")

    result = inner.runpytest_inprocess()

    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(
        ["*needs('promtol'): choose from bwrap, chromium, curl, dpkg, postgres, prometheus, promtool, rsync*"]
    )


@pytest.mark.parametrize("name", sorted(requirements.PROGRAMS))
def test_program_off_path_is_found(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = requirements.PROGRAMS[name]
    (tmp_path / known.names[-1]).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    assert requirements.program(name) == tmp_path / known.names[-1]


def test_postgres_is_found_where_debian_puts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for version in ("14", "15"):
        program = tmp_path / "lib" / version / "bin" / "postgres"
        program.parent.mkdir(parents=True)
        program.touch(mode=0o755)
    monkeypatch.setenv("PATH", "")
    elsewhere = f"{tmp_path.relative_to('/')}/lib/*/bin/postgres"
    known = requirements.Program(("postgres",), "postgresql", elsewhere)

    assert known.find() == tmp_path / "lib/15/bin/postgres"


def test_upstream_unset_skips_in_one_line(inner: pytest.Pytester) -> None:
    inner.makepyfile(READS_UPSTREAM)

    result = inner.runpytest_inprocess("-rs")

    result.assert_outcomes(passed=1, skipped=1)
    assert len([line for line in result.outlines if "UPSTREAM is not set" in line]) == 1


def test_upstream_that_is_no_folder_fails(inner: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPSTREAM", "/no/such/folder")
    inner.makepyfile(READS_UPSTREAM)

    result = inner.runpytest_inprocess()

    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*UPSTREAM=/no/such/folder is not a folder"])


def test_upstream_is_given_to_the_test_and_selects_it(
    inner: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    (inner.mkdir("inputs") / "windows").mkdir()
    monkeypatch.setenv("UPSTREAM", "inputs")
    inner.makepyfile(READS_UPSTREAM)

    inner.runpytest_inprocess("-m", "upstream").assert_outcomes(passed=1, deselected=1)


def test_a_developers_settings_do_not_reach_the_tests(
    inner: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in conftest.SETTINGS:
        monkeypatch.setenv(name, "5")
    monkeypatch.setenv("UPSTREAM", str(inner.mkdir("inputs")))
    monkeypatch.setenv("PYTHONPATH", str(Path(conftest.__file__).parent.parent))
    inner.makeini("[pytest]\nmarkers =\n    needs\n    upstream\naddopts = -p tests.conftest")
    inner.makepyfile(
        "import os\n"
        f"NAMES = {[*conftest.SETTINGS, 'UPSTREAM']!r}\n"
        f"def test_left():\n    assert [name for name in NAMES if name in os.environ] == ['UPSTREAM']\n"
    )

    inner.runpytest_subprocess().assert_outcomes(passed=1)


def test_testbed_follows_the_same_rules(inner: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    inner.makepyfile("def test_reads(testbed):\n    pass\n")

    inner.runpytest_inprocess().assert_outcomes(skipped=1)
    monkeypatch.setenv("TESTBED", "/no/such/folder")
    inner.runpytest_inprocess().assert_outcomes(errors=1)
    monkeypatch.setenv("TESTBED", str(inner.path))
    inner.runpytest_inprocess().assert_outcomes(passed=1)
