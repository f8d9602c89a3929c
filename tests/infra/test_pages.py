"""Commands of the two pages refer to existing files, manifests, secrets, jobs and settings."""

from __future__ import annotations

import json
import re
import shlex

import pytest
import yaml
from manifests import OVERLAYS, built, of_kind, ray_clusters
from test_policy import references
from test_schemas import core_validator, schema_errors

from infra.local_kubernetes.manifests import K8S, ROOT
from jobs import cli
from jobs.dataset import VERBS, DatasetConfig
from jobs.prepare import PrepareConfig
from jobs.submit import SubmitConfig, _split

pytestmark = pytest.mark.k8s
PAGES = ("README.md", "OPERATING.md")
KINDS = ("service", "secret", "deployment", "statefulset", "rayjob", "raycluster", "pod")
OTHERS = {("pod", "dataset-loader"), ("service", "prometheus-grafana")}  # dataset-loader-pod.yaml; the Grafana chart's


def commands(page: str) -> list[str]:
    """List the commands of a page's shell blocks, with continued lines joined and comments removed."""
    blocks = re.findall(r"```sh\n(.*?)```", (K8S / page).read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [re.sub(r"\s+# .*|^# .*", "", line) for line in lines if line.strip()]


def existing() -> set[tuple[str, str]]:
    """Return (kind, name) of the objects that the overlays and the operators create."""
    objects = {(m["kind"].lower(), m["metadata"]["name"]) for overlay in OVERLAYS for m in built(overlay)}
    objects |= {("service", f"{m['metadata']['name']}-head-svc") for m in of_kind("local", "RayCluster")}
    return objects | {("secret", name) for overlay in OVERLAYS for name, _ in references(overlay)} | OTHERS


@pytest.mark.parametrize("page", PAGES)
def test_files_that_commands_name_exist(page: str) -> None:
    named = [word for line in commands(page) for word in re.findall(r"infra/[\w./-]+", line)]
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_objects_that_commands_name_are_made(page: str) -> None:
    known, unknown = existing(), []
    for line in commands(page):
        for part in re.findall(r"kubectl [^|;&]*", line):
            slashed = re.findall(rf"\b({'|'.join(KINDS)})/([\w-]+)", part)
            spaced = re.findall(rf"\b(?:get|delete|patch) ({'|'.join(KINDS)}) ((?:[a-z][\w-]*\s*)+)", part)
            pairs = [*slashed, *((kind, name) for kind, names in spaced for name in names.split())]
            unknown += [(pair, line) for pair in pairs if pair not in known]
            assert " -n " in part or " -k " in part or " -f " in part or "create namespace scene" in part, line
    assert unknown == []


@pytest.mark.parametrize("page", PAGES)
def test_keys_of_secrets_exist(page: str) -> None:
    keys = re.findall(r"get secret ([\w-]+) -o jsonpath=\{\.data\.([\w-]+)\}", "\n".join(commands(page)))
    assert keys
    assert set(keys) <= set.union(*(references(overlay) for overlay in OVERLAYS))


def test_patches_are_json_that_starts_a_suspended_job() -> None:
    patches = re.findall(r"-p '(.*)'", "\n".join(commands("README.md")))
    assert len(patches) == len(of_kind("local", "RayJob"))
    assert all(json.loads(patch) == {"spec": {"suspend": False}} for patch in patches)


@pytest.mark.parametrize("page", PAGES)
def test_jobs_accept_their_arguments(page: str) -> None:
    num_jobs = 0
    for line in commands(page):
        if match := re.search(r"python -m jobs\.(\w+) (.*)", line):
            module, arguments = match[1], shlex.split(match[2])
            if module == "submit":
                options, (module, *arguments) = _split(arguments)
                cli.load_config(SubmitConfig, options)
            if module == "dataset":
                verb, *arguments = arguments
                assert verb in VERBS, line
            cli.load_config({"prepare": PrepareConfig, "dataset": DatasetConfig}[module], arguments)
            num_jobs += 1
    assert num_jobs


def test_selectors_name_the_standing_cluster() -> None:
    (cluster,) = of_kind("local", "RayCluster")
    selectors = {s for page in PAGES for s in re.findall(r"--selector (\S+)", "\n".join(commands(page)))}
    assert selectors == {f"ray.io/cluster={cluster['metadata']['name']}"}, "the operator's label"


def test_dataset_loader_pod_fits_the_namespace() -> None:
    pod = yaml.safe_load((K8S / "dataset-loader-pod.yaml").read_text())
    assert schema_errors(core_validator("Pod", "v1"), pod) == []
    (claim,) = [v["persistentVolumeClaim"]["claimName"] for v in pod["spec"]["volumes"]]
    assert ("persistentvolumeclaim", claim) in existing()
    decode = dict(ray_clusters("local"))["scene"]["workerGroupSpecs"][0]["template"]["spec"]
    assert pod["spec"]["securityContext"] == decode["securityContext"], "restricted, and the user that reads"
    (container,) = pod["spec"]["containers"]
    assert container["securityContext"] == decode["containers"][0]["securityContext"]
    assert container["image"] == decode["containers"][0]["image"]
    assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]
