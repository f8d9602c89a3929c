"""Commands of the two pages name what there is: files, manifests, secrets, jobs and their settings."""

from __future__ import annotations

import json
import re
import shlex

import pytest
import yaml
from manifests import OVERLAYS, built, of_kind, ray_clusters
from test_policy import references
from test_schemas import core_validator, faults

from infra.local_kubernetes.manifests import K8S, ROOT
from jobs import cli
from jobs.prepare import PrepareConfig
from jobs.submit import SubmitConfig, _split

pytestmark = pytest.mark.k8s
PAGES = ("README.md", "OPERATING.md")
KINDS = ("service", "secret", "deployment", "statefulset", "rayjob", "raycluster", "pod")
OTHERS = {("pod", "fill"), ("service", "prometheus-grafana")}  # dataset-loader-pod.yaml; the chart's


def commands(page: str) -> list[str]:
    """Every line of a page's shell blocks, continued lines joined, comments off."""
    blocks = re.findall(r"```sh\n(.*?)```", (K8S / page).read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [re.sub(r"\s+# .*|^# .*", "", line) for line in lines if line.strip()]


def there() -> set[tuple[str, str]]:
    """(kind, name) of what the overlays make, with what operators make of it."""
    found = {(m["kind"].lower(), m["metadata"]["name"]) for overlay in OVERLAYS for m in built(overlay)}
    found |= {("service", f"{m['metadata']['name']}-head-svc") for m in of_kind("local", "RayCluster")}
    return found | {("secret", name) for overlay in OVERLAYS for name, _ in references(overlay)} | OTHERS


@pytest.mark.parametrize("page", PAGES)
def test_files_that_commands_name_exist(page: str) -> None:
    named = [word for line in commands(page) for word in re.findall(r"infra/[\w./-]+", line)]
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_objects_that_commands_name_are_made(page: str) -> None:
    known, unknown = there(), []
    for line in commands(page):
        for part in re.findall(r"kubectl [^|;&]*", line):
            slashed = re.findall(rf"\b({'|'.join(KINDS)})/([\w-]+)", part)
            spoken = re.findall(rf"\b(?:get|delete|patch) ({'|'.join(KINDS)}) ((?:[a-z][\w-]*\s*)+)", part)
            pairs = [*slashed, *((kind, name) for kind, names in spoken for name in names.split())]
            unknown += [(pair, line) for pair in pairs if pair not in known]
            assert " -n " in part or " -k " in part or " -f " in part or "create namespace scene" in part, line
    assert unknown == []


@pytest.mark.parametrize("page", PAGES)
def test_keys_of_secrets_are_theirs(page: str) -> None:
    asked = re.findall(r"get secret ([\w-]+) -o jsonpath=\{\.data\.([\w-]+)\}", "\n".join(commands(page)))
    assert asked
    assert set(asked) <= set.union(*(references(overlay) for overlay in OVERLAYS))


def test_patches_are_json_that_starts_a_suspended_job() -> None:
    patches = re.findall(r"-p '(.*)'", "\n".join(commands("README.md")))
    assert len(patches) == len(of_kind("local", "RayJob"))
    assert all(json.loads(patch) == {"spec": {"suspend": False}} for patch in patches)


@pytest.mark.parametrize("page", PAGES)
def test_jobs_take_the_words_that_are_given(page: str) -> None:
    seen = 0
    for line in commands(page):
        if found := re.search(r"python -m jobs\.(\w+) (.*)", line):
            module, words = found[1], shlex.split(found[2])
            if module == "submit":
                own, (module, *words) = _split(words)
                cli.load_config(SubmitConfig, own)
            assert module == "prepare", "the only one so far"
            cli.load_config(PrepareConfig, words)
            seen += 1
    assert seen


def test_selectors_name_the_standing_cluster() -> None:
    (cluster,) = of_kind("local", "RayCluster")
    selectors = {s for page in PAGES for s in re.findall(r"--selector (\S+)", "\n".join(commands(page)))}
    assert selectors == {f"ray.io/cluster={cluster['metadata']['name']}"}, "the operator's label"


def test_pod_that_fills_the_claim_fits_the_namespace() -> None:
    pod = yaml.safe_load((K8S / "dataset-loader-pod.yaml").read_text())
    assert faults(core_validator("Pod", "v1"), pod) == []
    (claim,) = [v["persistentVolumeClaim"]["claimName"] for v in pod["spec"]["volumes"]]
    assert ("persistentvolumeclaim", claim) in there()
    decode = dict(ray_clusters("local"))["scene"]["workerGroupSpecs"][0]["template"]["spec"]
    assert pod["spec"]["securityContext"] == decode["securityContext"], "restricted, and the user who reads"
    (container,) = pod["spec"]["containers"]
    assert container["securityContext"] == decode["containers"][0]["securityContext"]
    assert container["image"] == decode["containers"][0]["image"]
    assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]
