"""Trim KubeRay's published schemas to what examples/kuberay.yaml uses, for tests/test_kuberay.py.

    git clone --depth 1 --branch v1.7.0 https://github.com/ray-project/kuberay
    .venv/bin/python scripts/kuberay_schema.py kuberay/helm-chart/kuberay-operator/crds

First the manifest is checked against the whole schemas, in which no unknown field is allowed. What is kept is
then the names of all fields at every level that the manifest has, and the schema of those that it uses.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import yaml

ROOT = Path(__file__).parents[1]
MANIFEST = ROOT / "examples/kuberay.yaml"
TRIMMED = ROOT / "tests/data/kuberay_schema.json"
FILES = {"RayCluster": "ray.io_rayclusters.yaml", "RayJob": "ray.io_rayjobs.yaml"}
KEPT = ("type", "required", "enum", "anyOf", "pattern", "minimum", "maximum")


def strict(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema in which an object has the fields that are named, and no others."""
    made = {key: schema[key] for key in KEPT if key in schema}
    if "items" in schema:
        made["items"] = strict(schema["items"])
    if isinstance(schema.get("additionalProperties"), dict):
        made["additionalProperties"] = strict(schema["additionalProperties"])
    elif "properties" in schema:
        made["properties"] = {name: strict(each) for name, each in schema["properties"].items()}
        made["additionalProperties"] = False
    return made


def trimmed(schema: dict[str, Any], values: list[Any]) -> dict[str, Any]:
    """Return a strict schema without what no value uses; the names of the fields stay."""
    made = dict(schema)
    if "items" in schema:
        inner = [each for value in values for each in value]
        made["items"] = trimmed(schema["items"], inner)
    if "properties" in schema:
        used = {
            name: [value[name] for value in values if name in value]
            for name in schema["properties"]
        }
        made["properties"] = {
            name: trimmed(each, used[name]) if used[name] else {}
            for name, each in schema["properties"].items()
        }
    return made


def published(folder: Path, kind: str) -> dict[str, Any]:
    """Return the strict schema of a kind, version v1, with its metadata left open as in the cluster."""
    document = yaml.safe_load((folder / FILES[kind]).read_text())
    version = next(each for each in document["spec"]["versions"] if each["name"] == "v1")
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def main() -> None:
    """Check the manifest against the whole schemas, and write the trimmed ones."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the folder crds of KubeRay's chart")
    folder = parser.parse_args().folder
    documents = list(yaml.safe_load_all(MANIFEST.read_text()))
    found = {}
    for kind in FILES:
        schema, values = (
            published(folder, kind),
            [each for each in documents if each["kind"] == kind],
        )
        for value in values:
            jsonschema.validate(value, schema)
        found[kind] = trimmed(schema, values)
    TRIMMED.write_text(json.dumps(found, separators=(",", ":"), sort_keys=True) + "\n")
    print(f"{MANIFEST.name} is valid; {TRIMMED.name}: {TRIMMED.stat().st_size} bytes")


if __name__ == "__main__":
    main()
