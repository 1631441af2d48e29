"""Manifests: of the right shape, safe, and in agreement with each other and with what they run."""

import ast
import copy
import json
import re
import shlex
from pathlib import Path

import jsonschema
import pytest
import ray.autoscaler
import yaml

from raylm import config
from raylm.cli import VERBS

ROOT = Path(__file__).parent.parent.parent
CLUSTER = ROOT / "cluster"
SCHEMA = jsonschema.Draft202012Validator(yaml.safe_load((Path(__file__).parent / "kuberay.schema.yaml").read_text()))
FILES = [*sorted((CLUSTER / "kuberay").glob("*.yaml")), CLUSTER / "monitoring" / "podmonitor.yaml"]
DOCUMENTS = {
    f"{path.stem}-{document['kind']}": document for path in FILES for document in yaml.safe_load_all(path.read_text())
}


def pods(document):
    """(where, pod template) of everything that a manifest runs."""
    spec = document.get("spec", {})
    if document["kind"] == "StatefulSet":
        yield "pod", spec["template"]
    cluster = {"RayCluster": spec, "RayJob": spec.get("rayClusterSpec"), "RayService": spec.get("rayClusterConfig")}
    if found := cluster.get(document["kind"]):
        yield "head", found["headGroupSpec"]["template"]
        for group in found["workerGroupSpecs"]:
            yield group["groupName"], group["template"]


PODS = [(f"{name}-{where}", template) for name, document in DOCUMENTS.items() for where, template in pods(document)]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_manifest_has_the_shape_that_its_kind_asks_for(name):
    SCHEMA.validate(DOCUMENTS[name])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "headGroupSpec", "rayStartParam"), {}),
        (("spec", "workerGroupSpecs", 0, "replicas"), "1"),
        (("spec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("spec", "authOptions", "mode"), "none"),
        (("spec", "headGroupSpec", "template", "spec", "containers", 0, "resources", "limits", "cpu"), "two"),
        (("apiVersion",), "ray.io/v1alpha1"),
    ],
)
def test_the_schema_refuses_what_is_wrong(path, value):
    document = copy.deepcopy(DOCUMENTS["raycluster-RayCluster"])
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert not SCHEMA.is_valid(document)


@pytest.mark.parametrize(("name", "template"), PODS, ids=[name for name, _ in PODS])
def test_a_pod_has_no_more_rights_than_it_needs(name, template):
    spec = template["spec"]
    assert template["metadata"]["labels"]["app.kubernetes.io/part-of"] == "raylm"  # the network policy's pods
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    if name != "raycluster-RayCluster-head":  # whose autoscaler asks the API server for pods
        assert spec["automountServiceAccountToken"] is False
    for container in spec["containers"]:
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        held = container["resources"]
        assert held["requests"]["memory"] == held["limits"]["memory"] or name.startswith("redis")
        assert not container["image"].endswith(":latest")
        assert ":" in container["image"]


def test_ray_clusters_ask_for_a_token_and_run_the_locked_version():
    (locked,) = re.findall(r"^ray==([\d.]+)", (CLUSTER / "requirements" / "cpu.txt").read_text(), re.MULTILINE)
    for document in DOCUMENTS.values():
        spec = document.get("spec", {})
        cluster = {"RayCluster": spec, "RayJob": spec.get("rayClusterSpec"), "RayService": spec.get("rayClusterConfig")}
        if found := cluster.get(document["kind"]):
            assert found["authOptions"] == {"mode": "token"}
            assert found["rayVersion"] == locked


def test_the_network_policy_covers_all_pods_and_opens_no_port_to_everybody():
    (policy,) = (document for document in DOCUMENTS.values() if document["kind"] == "NetworkPolicy")
    assert set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}
    for rule in policy["spec"]["ingress"]:
        assert rule["from"]
        for peer in rule["from"]:
            assert peer.get("podSelector", {}).get("matchLabels") or peer["namespaceSelector"].get("matchLabels")
    (outside,) = (rule for rule in policy["spec"]["egress"] if "to" not in rule)
    assert [port["port"] for port in outside["ports"]] == [443]
    asked = {port["port"] for rule in policy["spec"]["ingress"] for port in rule.get("ports", [])}
    named = {port["containerPort"] for _, template in PODS for port in template["spec"]["containers"][0]["ports"]}
    assert {8265, 8000, 8080} <= asked & named


def test_a_job_runs_an_entry_point_with_a_config_that_resolves_and_keeps_its_results():
    spec = DOCUMENTS["rayjob-RayJob"]["spec"]
    python, flag, module, *arguments = shlex.split(spec["entrypoint"])
    assert (python, flag) == ("python", "-m")
    verb = VERBS[module.removeprefix("jobs.").replace("_", "-")]
    assert (ROOT / f"{module.replace('.', '/')}.py").is_file()
    resolved = config.load(verb.config_class(), arguments)
    mounts = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert any(resolved.out.startswith(mount["mountPath"] + "/") for mount in mounts)
    assert spec["backoffLimit"] > 0
    assert spec["shutdownAfterJobFinishes"] is True
    yaml.safe_load(spec["runtimeEnvYAML"])


def test_the_ray_service_serves_what_the_serve_config_says():
    from ray.serve.schema import ServeDeploySchema

    inside = yaml.safe_load(DOCUMENTS["rayservice-RayService"]["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(inside)
    assert inside == yaml.safe_load((CLUSTER / "serve.yaml").read_text())
    for application in inside["applications"]:
        module, name = application["import_path"].split(":")
        tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_a_lost_head_of_the_service_finds_its_redis_and_its_password():
    options = DOCUMENTS["rayservice-RayService"]["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]
    name, port = options["redisAddress"].split(":")
    service, redis = DOCUMENTS["redis-Service"], DOCUMENTS["redis-StatefulSet"]
    assert service["metadata"]["name"] == name
    assert service["spec"]["ports"][0]["port"] == int(port)
    assert service["spec"]["selector"].items() <= redis["spec"]["template"]["metadata"]["labels"].items()
    (variable,) = redis["spec"]["template"]["spec"]["containers"][0]["env"]
    assert variable["valueFrom"] == options["redisPassword"]["valueFrom"]


def test_the_machines_of_ray_up_fit_rays_own_schema_and_start_with_a_token():
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    content = yaml.safe_load((CLUSTER / "vm.yaml").read_text())
    jsonschema.validate(content, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**content, "max_worker": 1}, schema)
    for kind in ("head", "worker"):
        (start,) = (line for line in content[f"{kind}_start_ray_commands"] if "ray start" in line)
        assert "RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=" in start
    assert "--dashboard-host=127.0.0.1" in content["head_start_ray_commands"][-1]


DOCKERFILES = sorted(CLUSTER.glob("Dockerfile.*"))


def instructions(path):
    """(name, arguments) of every instruction, continued lines joined and comments left out."""
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        name, arguments = line.split(maxsplit=1)
        yield name, arguments


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_a_dockerfile_keeps_to_the_rules_of_small_and_safe_images(path):
    found = list(instructions(path))
    names = [name for name, _ in found]
    assert set(names) <= {"FROM", "RUN", "ARG", "ENV", "COPY", "USER", "WORKDIR", "CMD"}  # no ADD, no MAINTAINER
    assert names.index("FROM") == 0
    image = next(arguments for name, arguments in found if name == "FROM")
    assert ":" in image
    assert not image.endswith(":latest")
    assert [arguments for name, arguments in found if name == "USER"] == ["ray"]
    assert isinstance(json.loads(found[-1][1]), list)  # CMD as a list: signals reach the process
    for name, arguments in found:
        if name == "RUN" and "apt-get install" in arguments:
            assert "--no-install-recommends" in arguments
            assert arguments.startswith("apt-get update")
            assert "rm -rf /var/lib/apt/lists/*" in arguments
        if name == "RUN":
            assert not re.search(r"\bsudo\b|curl [^|]*\|\s*(ba)?sh|apt-get upgrade|apk |chmod 777", arguments)
        if name == "COPY":
            assert "--chown=ray" in arguments
        if name == "WORKDIR":
            assert arguments.startswith("/")
        if name == "ENV":
            assert not re.search(r"(?i)(token|secret|password)=", arguments)
    before = names.index("USER")
    assert "pip install" not in " ".join(arguments for name, arguments in found[:before] if name == "RUN")
