"""Asks a real Dagster webserver, as its own pages do."""

from __future__ import annotations

from typing import Any

import httpx

LOCATION = {"repositoryName": "__repository__", "repositoryLocationName": "hailo-pipeline"}
ENDED = ("SUCCESS", "FAILURE", "CANCELED")

_RUNS = """{ runsOrError(limit: 200) { ... on Runs { results {
  runId status jobName tags { key value } assetSelection { path }
  assetCheckSelection { name }
} } } }"""
_TICKS = """query($selector: SensorSelector!) { sensorOrError(sensorSelector: $selector) { ... on Sensor {
  sensorState { status ticks(limit: 60) { id status timestamp runIds error { message } } } } } }"""
_ASSETS = """{ assetNodes { assetKey { path } staleStatus
  assetMaterializations(limit: 1) { runId timestamp metadataEntries { label
    ... on TextMetadataEntry { text } } tags { key value } }
  assetObservations(limit: 50) { metadataEntries { label ... on TextMetadataEntry { text } }
    tags { key value } }
} }"""
_LAUNCH = """mutation($params: ExecutionParams!) { launchPipelineExecution(executionParams: $params) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message causes { message } }
  ... on RunConfigValidationInvalid { errors { message } } } }"""
_TERMINATE = """mutation($id: String!) { terminateRun(runId: $id) { __typename
  ... on PythonError { message } ... on TerminateRunFailure { message } } }"""


class Dagster:
    """A webserver of Dagster's.

    Args:
        url: Its address.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """The answer's data; an assertion where there are errors."""
        request = {"query": query, "variables": variables}
        answer = httpx.post(f"{self.url}/graphql", json=request, timeout=60).json()
        assert "errors" not in answer, answer
        data: dict[str, Any] = answer["data"]
        return data

    def runs(self) -> list[dict[str, Any]]:
        """All runs, newest first; tags as a dictionary, assets as ``a/b``."""
        found: list[dict[str, Any]] = self.ask(_RUNS)["runsOrError"]["results"]
        for run in found:
            run["tags"] = {tag["key"]: tag["value"] for tag in run["tags"]}
            run["assets"] = {"/".join(each["path"]) for each in run["assetSelection"] or []}
        return found

    def run(self, run_id: str) -> dict[str, Any]:
        """One of them."""
        return next(run for run in self.runs() if run["runId"] == run_id)

    def ticks(self, sensor: str) -> list[dict[str, Any]]:
        """What a sensor did, newest first."""
        found = self.ask(_TICKS, selector={**LOCATION, "sensorName": sensor})["sensorOrError"]
        ticks: list[dict[str, Any]] = found["sensorState"]["ticks"]
        return ticks

    def assets(self) -> dict[str, dict[str, Any]]:
        """Every asset by its key."""
        return {"/".join(node["assetKey"]["path"]): node for node in self.ask(_ASSETS)["assetNodes"]}

    def launch(self, job: str, config: dict[str, Any] | None = None, *assets: str) -> dict[str, Any]:
        """Start a run as the launchpad does; what came of it."""
        selector: dict[str, Any] = {**LOCATION, "pipelineName": job}
        if assets:
            selector["assetSelection"] = [{"path": name.split("/")} for name in assets]
        params = {"selector": selector, "mode": "default", "runConfigData": config or {}}
        found: dict[str, Any] = self.ask(_LAUNCH, params=params)["launchPipelineExecution"]
        return found

    def terminate(self, run_id: str) -> str:
        """End a run; what came of it."""
        return str(self.ask(_TERMINATE, id=run_id)["terminateRun"]["__typename"])
