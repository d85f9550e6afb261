"""Rules and dashboard, without a Prometheus that runs: they can be read, and ask for ours alone."""

from __future__ import annotations

import json
import re
import subprocess

import pytest
import yaml
from prometheus_client import generate_latest

from assets.canary_rows import FAULTLESS
from runtime.metrics import RuntimeMetrics
from tests.monitoring import (
    DASHBOARD,
    JOB,
    PROMETHEUS,
    alerts,
    documents,
    panel_queries,
    panels,
    records,
    rules,
    selectors,
)
from tests.requirements import program
from tests.simulators import ROOT

CASES = ROOT / "tests" / "prometheus" / "rules_test.yml"


def promtool(*arguments: str) -> str:
    run = subprocess.run(
        [str(program("promtool")), *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@pytest.mark.needs("promtool")
def test_prometheus_takes_its_files() -> None:
    promtool("check", "config", str(PROMETHEUS / "prometheus.yml"))
    assert f"{len(rules())} rules found" in promtool("check", "rules", str(PROMETHEUS / "rules.yml"))


@pytest.mark.needs("promtool")
def test_alerts_fire_where_they_must_and_nowhere_else() -> None:
    promtool("test", "rules", str(CASES))


def test_each_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    firing: list[set[str]] = []
    for case in yaml.safe_load(CASES.read_text())["tests"]:
        asked = [each for each in case["promql_expr_test"] if each["expr"] == 'ALERTS{alertstate="firing"}']
        assert len(asked) == 1, case["name"]
        labels = [sample["labels"] for sample in asked[0]["exp_samples"]]
        firing.append({match[1] for each in labels if (match := re.search(r'alertname="(\w+)"', each))})
    assert set().union(*firing) == set(alerts())
    assert set() in firing  # in order, and nothing is said


def test_every_query_is_of_our_job() -> None:
    """EdgeInfer exports ``http_requests_total`` and others, too: a sum over all jobs counts twice."""
    asked = [rule["expr"] for rule in rules()]
    asked += [query for queries in panel_queries().values() for query in queries]
    found = [selector for query in asked for selector in selectors(query)]
    assert len(found) > 80
    assert [selector for selector in found if JOB not in selector] == []


def test_what_alerts_ask_of_records_is_recorded() -> None:
    asked = {name for rule in rules() for name in re.findall(r"hailo:\w+:\w+", rule["expr"])}
    assert asked <= set(records())


def test_prometheus_calls_the_runtimes_what_the_queries_do() -> None:
    (scrape,) = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]
    assert f'job="{scrape["job_name"]}"' == JOB


def test_alerts_say_what_to_do() -> None:
    for name, alert in alerts().items():
        assert alert["labels"]["severity"] in ("critical", "warning", "info"), name
        assert set(alert["annotations"]) == {"summary", "what_to_do"}, name


def test_the_dashboard_is_one() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    ids = [each["id"] for each in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    assert len({each["title"] for each in panels()}) == len(panels())
    cells = [
        (column, line)
        for each in dashboard["panels"]
        for column in range(each["gridPos"]["x"], each["gridPos"]["x"] + each["gridPos"]["w"])
        for line in range(each["gridPos"]["y"], each["gridPos"]["y"] + each["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells), "panels lie over each other"
    assert max(column for column, _ in cells) < 24
    names = {each["name"] for each in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]\w*)", DASHBOARD.read_text()))
    assert used == names


def test_grafana_finds_what_it_is_given() -> None:
    given = documents(ROOT / "deploy" / "grafana" / "provisioning")
    assert len(given) == 2
    (source,) = next(each["datasources"] for each in given.values() if "datasources" in each)
    assert source["type"] == "prometheus"


def test_the_rules_know_no_metric_that_the_runtime_lacks() -> None:
    """Names that are there without traffic; the journey with a real Prometheus looks for the others."""
    text = generate_latest(RuntimeMetrics("stable").registry).decode()
    for name in (
        "hailo_model_loaded",
        "hailo_engine_failing",
        "hailo_release_switch_failing",
        "hailo_store_alarm",
    ):
        assert name in text


def test_what_is_not_a_canarys_fault_raises_no_alert_on_it() -> None:
    """The rule and the judge name the same reasons."""
    text = (ROOT / "deploy" / "prometheus" / "rules.yml").read_text()
    found = re.findall(r'hailo_shadow_failures_total\{[^}]*reason!~"([^"]*)"', text)
    assert found
    assert {frozenset(each.split("|")) for each in found} == {frozenset(FAULTLESS)}
