"""The cluster files, checked with Ray's own loader and schema, so that a typo cannot land."""

import json
import os
import platform
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import jsonschema
import pytest
import torch
import yaml

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["gpu.yaml", "workstations.yaml"])
def test_ray_up_accepts_it(name):
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((ROOT / "cluster" / name).read_text())
    validate_config(prepare_config(config))
    mounted = [source for source in config["file_mounts"].values() if source != "~/.ray"]
    assert all((ROOT / source).exists() for source in mounted)


@pytest.mark.parametrize("name", ["gpu.yaml", "workstations.yaml"])
def test_every_node_gets_the_token_and_asks_for_it(name):
    config = yaml.safe_load((ROOT / "cluster" / name).read_text())
    home = "/home/ray" if "docker" in config else "~"
    assert config["file_mounts"][f"{home}/.ray"] == "~/.ray"
    for kind in ("head_start_ray_commands", "worker_start_ray_commands"):
        (start,) = [c for c in config[kind] if "ray start" in c]
        assert "RAY_AUTH_MODE=token" in start and "RAY_USAGE_STATS_ENABLED=0" in start
        assert "-c unlimited" not in start
    assert not any("get-auth-token" in c for kind in ("setup_commands", "head_start_ray_commands") for c in config.get(kind, []))


def test_workstations_run_in_the_environment_that_jobs_use():
    config = yaml.safe_load((ROOT / "cluster/workstations.yaml").read_text())
    for kind in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert all(c.startswith(". ~/talos_ray_venv/bin/activate && ") for c in config[kind])
    check = next(c for c in config["setup_commands"] if "platform" in c).replace("python3.11", sys.executable, 1)
    here = platform.python_version()
    wrong = subprocess.run(["bash", "-c", check.replace("3.11.11", "3.11.999")], capture_output=True, text=True)
    right = subprocess.run(["bash", "-c", check.replace("3.11.11", here)], capture_output=True, text=True)
    assert right.returncode == 0 and wrong.returncode != 0
    assert f"has Python {here}; wanted 3.11.999" in wrong.stderr


def test_a_node_without_a_gpu_ends_while_it_is_set_up():
    gpu = yaml.safe_load((ROOT / "cluster/gpu.yaml").read_text())["available_node_types"]["gpu"]
    (check,) = gpu["worker_setup_commands"]
    if not torch.cuda.is_available():
        done = subprocess.run(["bash", "-c", check.replace("python", sys.executable, 1)], capture_output=True, text=True)
        assert done.returncode != 0 and "sees no GPU; wanted a driver for CUDA" in done.stderr


def test_aws_makes_nodes_of_it(monkeypatch, tmp_path):
    """Ray's own set-up, against a simulated AWS: what is asked for is what Ray would start."""
    import boto3
    from moto import mock_aws
    from ray.autoscaler._private.aws import config as aws
    from ray.autoscaler._private.util import prepare_config

    monkeypatch.setenv("HOME", str(tmp_path))
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(key, "testing")
    (tmp_path / ".ssh").mkdir()
    with mock_aws():
        ec2 = boto3.client("ec2", region_name="us-west-2")
        group = ec2.create_security_group(GroupName="talos-ray", Description="talos_ray")["GroupId"]
        text = (ROOT / "cluster/gpu.yaml").read_text().replace("sg-00000000000000000", group)
        made = aws.bootstrap_aws(prepare_config(yaml.safe_load(text)))
        groups = ec2.describe_security_groups()["SecurityGroups"]
    for name, profile in (("head", "talos-ray-head"), ("gpu", "talos-ray-worker")):
        node = made["available_node_types"][name]["node_config"]
        assert node["IamInstanceProfile"]["Arn"].endswith(f"instance-profile/{profile}")
        assert node["SecurityGroupIds"] == [group] and node["KeyName"] and node["SubnetIds"]
    assert made["available_node_types"]["gpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    opened = [r["CidrIp"] for g in groups for p in g["IpPermissions"] for r in p["IpRanges"]]
    assert "0.0.0.0/0" not in opened  # Ray made none of its own


@pytest.mark.parametrize("name", ["aws-bucket-policy.json", "aws-head-policy.json"])
def test_policies_give_what_is_needed_and_no_more(name):
    policy = json.loads((ROOT / "cluster" / name).read_text())
    for statement in policy["Statement"]:
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        assert "*" not in actions and not any(a in ("s3:*", "ec2:*", "iam:*") for a in actions)
        if statement["Resource"] == "*":
            assert "Condition" in statement


def test_the_image_has_what_a_job_needs():
    """Everything that is copied is there, and nothing that `.dockerignore` keeps out."""
    text = (ROOT / "cluster/Dockerfile").read_text()
    copied = [word for line in re.findall(r"^COPY --chown=\S+ (.*) \S+$", text, re.M) for word in line.split()]
    let_in = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.M)
    assert sorted(copied) == sorted(let_in) and all((ROOT / name).exists() for name in copied)
    script, spec = re.search(r"python (\S+) --spec (\S+)", (ROOT / "cluster/rayjob.yaml").read_text()).groups()
    assert all(Path(name).parts[0] in copied and (ROOT / name).is_file() for name in (script, spec))


def test_a_typo_would_be_found():
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((ROOT / "cluster/gpu.yaml").read_text())
    config["idle_timeout_minuts"] = 5
    with pytest.raises(Exception, match="idle_timeout_minuts"):
        validate_config(prepare_config(config))


# Fields of ray.io/v1 RayJob, from KubeRay's published API reference.
JOB = {
    "entrypoint",
    "shutdownAfterJobFinishes",
    "ttlSecondsAfterFinished",
    "backoffLimit",
    "rayClusterSpec",
    "runtimeEnvYAML",
    "activeDeadlineSeconds",
    "submissionMode",
    "entrypointNumCpus",
}
CLUSTER = {"rayVersion", "headGroupSpec", "workerGroupSpecs", "enableInTreeAutoscaling", "autoscalerOptions", "authOptions"}
GROUP = {"rayStartParams", "template", "groupName", "replicas", "minReplicas", "maxReplicas", "numOfHosts"}


def test_the_kuberay_job_has_known_fields_only():
    job = yaml.safe_load((ROOT / "cluster/rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert set(job["spec"]) <= JOB and set(job["spec"]["rayClusterSpec"]) <= CLUSTER
    groups = [job["spec"]["rayClusterSpec"]["headGroupSpec"], *job["spec"]["rayClusterSpec"]["workerGroupSpecs"]]
    for group in groups:
        assert set(group) <= GROUP and group["template"]["spec"]["containers"][0]["image"]
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"} and cluster["enableInTreeAutoscaling"] is True
    assert job["spec"]["backoffLimit"] == 0 and job["spec"]["activeDeadlineSeconds"] > 0
    pod = cluster["workerGroupSpecs"][0]["template"]["spec"]
    assert pod["serviceAccountName"] and pod["tolerations"][0]["key"] == "nvidia.com/gpu"


def closed(schema):
    """A CRD's schema that knows no other fields than its own, as `kubectl apply --validate=strict` has it."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    found = {name: closed(part) for name, part in schema.items()}
    if "properties" in found and not found.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    return found


@pytest.mark.skipif("KUBERAY_CRD" not in os.environ, reason="set KUBERAY_CRD to KubeRay's ray.io_rayjobs.yaml")
def test_the_kuberay_job_fits_kuberays_own_definition():
    """Seen with those of KubeRay 1.6.2 and 1.7.0 (ray-operator/config/crd/bases of its repository)."""
    definition = yaml.safe_load(Path(os.environ["KUBERAY_CRD"]).read_text())
    (version,) = (v for v in definition["spec"]["versions"] if v["name"] == "v1")
    schema = closed(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}  # Kubernetes' own, of which a CRD says nothing
    check = jsonschema.Draft202012Validator(schema)
    job = yaml.safe_load((ROOT / "cluster/rayjob.yaml").read_text())
    assert [error.message for error in check.iter_errors(job)] == []
    job["spec"]["rayClusterSpec"]["authOption"] = {}
    assert len(list(check.iter_errors(job))) == 1


def test_every_file_names_the_ray_that_is_pinned():
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M).group(1)
    assert pinned == version("ray")
    for name in ("Dockerfile", "rayjob.yaml"):
        found = set(
            re.findall(r"(?:rayproject/ray:|rayVersion: \")(\d+\.\d+\.\d+)", (ROOT / "cluster" / name).read_text())
        )
        assert found == {pinned}


def test_dashboard_and_alerts_read_metrics_that_a_run_has():
    source = (ROOT / "talos_ray/orchestrate/watch.py").read_text()
    told = {f"ray_talos_ray_{name}" for name in re.findall(r'gauge\("(\w+)"', source)}
    board = json.loads((ROOT / "cluster/grafana-dashboard.json").read_text())
    rules = yaml.safe_load((ROOT / "cluster/alerts.yaml").read_text())["groups"][0]["rules"]
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    asked += [rule["expr"] for rule in rules]
    used = {name for expression in asked for name in re.findall(r"ray_talos_ray_\w+", expression)}
    assert len(told) >= 7 and len(rules) == 3 and used <= told
    assert all('run=~"$run"' in target["expr"] for panel in board["panels"] for target in panel["targets"])
