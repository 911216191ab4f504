"""The cluster files, checked with Ray's own loader and schema, so that a typo cannot land."""

import re
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["gpu.yaml", "workstations.yaml"])
def test_ray_up_accepts_it(name):
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((ROOT / "cluster" / name).read_text())
    validate_config(prepare_config(config))
    mounted = config["file_mounts"].values()
    assert all((ROOT / source).exists() for source in mounted)
    assert any("--constraint" in c for c in config["setup_commands"])


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
CLUSTER = {"rayVersion", "headGroupSpec", "workerGroupSpecs", "enableInTreeAutoscaling", "autoscalerOptions"}
GROUP = {"rayStartParams", "template", "groupName", "replicas", "minReplicas", "maxReplicas", "numOfHosts"}


def test_the_kuberay_job_has_known_fields_only():
    job = yaml.safe_load((ROOT / "cluster/rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert set(job["spec"]) <= JOB and set(job["spec"]["rayClusterSpec"]) <= CLUSTER
    groups = [job["spec"]["rayClusterSpec"]["headGroupSpec"], *job["spec"]["rayClusterSpec"]["workerGroupSpecs"]]
    for group in groups:
        assert set(group) <= GROUP and group["template"]["spec"]["containers"][0]["image"]
    script = job["spec"]["entrypoint"].split()[1]
    assert (ROOT / script).is_file()


def test_every_file_names_the_ray_that_is_pinned():
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M).group(1)
    assert pinned == version("ray")
    for name in ("gpu.yaml", "rayjob.yaml", "README.md"):
        found = set(
            re.findall(r"(?:rayproject/ray:|rayVersion: \")(\d+\.\d+\.\d+)", (ROOT / "cluster" / name).read_text())
        )
        assert found == {pinned}
