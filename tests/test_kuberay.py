"""The manifest for KubeRay: valid by the published schemas, trimmed by scripts/kuberay_schema.py."""

from __future__ import annotations

import copy
import json
import shlex
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import yaml

from lipcast.cli.app import make_app

ROOT = Path(__file__).parents[1]
DOCUMENTS = {
    document["kind"]: document
    for document in yaml.safe_load_all((ROOT / "examples/kuberay.yaml").read_text())
}
SCHEMAS = json.loads((ROOT / "tests/data/kuberay_schema.json").read_text())


@pytest.mark.parametrize("kind", SCHEMAS)
def test_the_manifest_is_valid(kind: str) -> None:
    jsonschema.validate(DOCUMENTS[kind], SCHEMAS[kind])


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("RayCluster", ["spec", "headGroupSpecs"], {}),
        ("RayCluster", ["spec", "workerGroupSpecs", 0, "replicas"], "two"),
        ("RayCluster", ["spec", "workerGroupSpecs", 0, "template", "spec", "container"], []),
        ("RayCluster", ["spec", "headGroupSpec", "template", "spec", "containers", 0, "name"], 1),
        ("RayJob", ["spec", "entrypoints"], "lipcast"),
        ("RayJob", ["spec", "clusterSelector"], "lipcast"),
    ],
)
def test_a_slip_is_found(kind: str, path: list[Any], value: Any) -> None:
    document = inner = copy.deepcopy(DOCUMENTS[kind])
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, SCHEMAS[kind])


def pods() -> list[dict[str, Any]]:
    spec = DOCUMENTS["RayCluster"]["spec"]
    return [
        group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])
    ]


def test_every_pod_mounts_the_share() -> None:
    claim = DOCUMENTS["PersistentVolumeClaim"]["metadata"]["name"]
    for pod in pods():
        names = {
            volume["name"]
            for volume in pod["volumes"]
            if volume["persistentVolumeClaim"]["claimName"] == claim
        }
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= names
            assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/share"]


def test_the_job_runs_a_command_of_lipcast_on_this_cluster() -> None:
    job = DOCUMENTS["RayJob"]["spec"]
    cluster = DOCUMENTS["RayCluster"]["metadata"]["name"]
    assert job["clusterSelector"] == {"ray.io/cluster": cluster}
    program, *arguments = shlex.split(job["entrypoint"])
    assert program == "lipcast" and arguments[:2] == ["job", "run"]
    assert "backoffLimit" not in job  # KubeRay refuses it beside clusterSelector
    command: Any = make_app()
    for name in arguments[:2]:
        command = command.get_command(click.Context(command), name)
    assert command.make_context("run", arguments[2:]).params["executor"] == "ray"
