"""The KubeRay RayJob, as far as it can be checked without a Kubernetes cluster."""

from __future__ import annotations

import copy
import json
import shlex
from importlib import metadata
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((Path(__file__).parent / "rayjob_schema.json").read_text())


@pytest.fixture
def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ROOT / "cluster" / "kuberay" / "pretrain_ukb.yaml").read_text()))


@pytest.fixture
def job(documents: list[dict[str, Any]]) -> dict[str, Any]:
    return documents[0]


def pods(job: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    return [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def test_it_has_the_fields_of_a_rayjob(job: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.Draft202012Validator(SCHEMA).validate(job)


@pytest.mark.parametrize(
    "break_it",
    [
        lambda job: job.update(apiVersion="ray.io/v1alpha1"),
        lambda job: job["spec"].update(shutdownAfterJobFinish=True),
        lambda job: job["spec"].update(shutdownAfterJobFinishes=False),
        lambda job: job["spec"]["rayClusterSpec"]["authOptions"].update(mode="tokens"),
        lambda job: job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
        lambda job: pods(job)[1]["spec"]["containers"][0]["resources"]["limits"].update(memory="480 GB"),
        lambda job: pods(job)[1]["spec"]["containers"][0]["env"].append({"name": "X", "value": 1}),
    ],
)
def test_the_schema_sees_mistakes(job: dict[str, Any], break_it: Any) -> None:
    broken = copy.deepcopy(job)
    break_it(broken)
    assert not jsonschema.Draft202012Validator(SCHEMA).is_valid(broken)


def test_it_runs_the_same_job_file(job: dict[str, Any]) -> None:
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:4] == ["python", "jobs/pretrain_ukb.py", "--preset", "paper"]
    assert (ROOT / words[1]).is_file()
    # Each retry is a new cluster: only a stable name lets it go on.
    assert "--name" in words and job["spec"]["backoffLimit"] > 0
    mounts = {m["mountPath"] for m in pods(job)[0]["spec"]["containers"][0]["volumeMounts"]}
    for option in ("--storage", "--data.shards"):
        path = words[words.index(option) + 1]
        assert any(path.startswith(f"{mount}/") for mount in mounts - {"/dev/shm"}), f"{option} is not shared"


def test_it_has_the_papers_gpus_and_room_for_shared_memory(job: dict[str, Any]) -> None:
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    resources = group["template"]["spec"]["containers"][0]["resources"]
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == 8
    assert group["replicas"] * int(resources["limits"]["nvidia.com/gpu"]) == 64
    assert resources["limits"] == resources["requests"]  # guaranteed: not the first to be evicted
    for pod in pods(job):
        (container,) = pod["spec"]["containers"]
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        mounted = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        assert mounted["/dev/shm"]["emptyDir"]["medium"] == "Memory"
        assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)


def test_versions_and_authentication(job: dict[str, Any]) -> None:
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == metadata.version("ray")
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"  # nothing outside Kubernetes


def test_only_the_namespace_and_the_operator_reach_ray(documents: list[dict[str, Any]]) -> None:
    job, policy = documents
    assert policy["apiVersion"] == "networking.k8s.io/v1" and policy["kind"] == "NetworkPolicy"
    chosen = policy["spec"]["podSelector"]["matchLabels"]
    for pod in pods(job):
        assert chosen.items() <= pod["metadata"]["labels"].items(), "a Ray pod escapes the policy"
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    (rule,) = policy["spec"]["ingress"]
    assert all("ipBlock" not in peer for peer in rule["from"]) and rule["from"]
