"""Preparation of videos from hosts that fail in many ways, on the session's Ray."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hostile_server import HostileServer, hostile_server

from cluster.dataset.manifest import Manifest
from cluster.prepare.packing import PackingConfig
from cluster.prepare.pipeline import make_plan, prepare, prepare_dataset
from cluster.prepare.status import dataset_status, requeue
from cluster.sources.config import FetchConfig
from cluster.sources.manifest import Source
from vgan.errors import InputError
from vgan.synthetic import draw_clip
from vgan.video.config import ClipSpec, DecodeConfig, FilterConfig, StabilizeConfig, VideoConfig
from vgan.video.encode import write_mp4

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

VIDEO = VideoConfig(
    clip=ClipSpec(num_frames=16, size=32, stride=16),
    decode=DecodeConfig(short_side=96),
    stabilize=StabilizeConfig(size=96),
    filters=FilterConfig(disabled=["near_duplicate"]),
)
FETCH = FetchConfig(attempts=1, idle_s=1.0, max_pause_s=0.0, private_addresses=True)
FAILURES = ("500", "400", "429", "short", "stalled", "disconnected", "to-file")  # and a closed port


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("video") / "v.mp4"
    write_mp4(draw_clip("Spin", num_frames=40, size=(96, 128)).frames, path, 25.0)
    return path.read_bytes()


@pytest.fixture
def server(video: bytes) -> Iterator[HostileServer]:
    with hostile_server() as running:
        running.files |= {f"good{n}": video for n in range(20)}
        yield running


def urls(server: HostileServer, good: int, failing: int) -> list[Source]:
    """List videos of which `good` can be fetched and `failing` fail in different ways, mixed."""
    bad = [f"{server.url}/{FAILURES[n % len(FAILURES)]}.mp4?{n}" for n in range(failing - 1)] + ["http://127.0.0.1:1/x"]
    uris = sorted([*(f"{server.url}/good{n}.mp4" for n in range(good)), *bad], key=lambda uri: uri[::-1])
    return [Source(uri=uri, source_id=f"{n:02d}") for n, uri in enumerate(uris)]


def run(sources: list[Source], out: Path, fetch: FetchConfig = FETCH, overwrite: bool = False) -> Manifest:
    return prepare(sources, str(out), VIDEO, PackingConfig(shard_mb=1), fetch=fetch, overwrite=overwrite)


def test_prepare_of_twenty_urls_of_which_eight_fail_packs_twelve_twice_the_same(
    server: HostileServer, tmp_path: Path
) -> None:
    sources = urls(server, 12, 8)
    manifests = [run(sources, tmp_path / name) for name in ("first", "second")]
    assert manifests[0].digest == manifests[1].digest
    counts = manifests[0].counts
    assert (counts["sources"], counts["accepted"], counts["rejected"]) == (20, 12, 8)
    assert counts["rejected_by_reason"] == {"unreachable": 8}
    rows = [pq.read_table(tmp_path / name / "rejects.parquet").to_pylist() for name in ("first", "second")]
    assert rows[0] == rows[1]
    assert len({row["detail"] for row in rows[0]}) == 8
    assert run(sources, tmp_path / "first") == manifests[0]  # nothing left to do
    print("\n".join(sorted(row["detail"] for row in rows[0])))


def test_prepare_with_most_downloads_failing_ends_and_resumes(server: HostileServer, tmp_path: Path) -> None:
    sources = urls(server, 2, 18)
    out = tmp_path / "clips"
    with pytest.raises(InputError, match="18 of the last 20 downloads failed") as caught:
        run(sources, out)
    assert "\n" not in str(caught.value)
    status = dataset_status(str(out))
    assert (status.complete, status.rejects, status.finished) == (2, {}, False)
    server.repaired = server.files["good0"]
    manifest = run(sources, out)
    assert (manifest.counts["accepted"], manifest.counts["rejected"]) == (19, 1)
    assert server.requests["good0"] == 1  # what was committed is not downloaded again


def test_prepare_without_the_limit_rejects_them_and_retry_downloads_again(
    server: HostileServer, tmp_path: Path
) -> None:
    sources, out = urls(server, 2, 18), tmp_path / "clips"
    manifest = run(sources, out, replace(FETCH, max_failed_share=1.0))
    assert manifest.counts["rejected_by_reason"] == {"unreachable": 18}
    plan = make_plan(sources, str(out), VIDEO, PackingConfig(shard_mb=1), fetch=FETCH, overwrite=True)
    assert requeue(str(out), "unreachable", plan.videos) == 18
    server.repaired = server.files["good0"]
    assert prepare_dataset(plan).counts["rejected_by_reason"] == {"unreachable": 1}


def test_prepare_of_a_short_list_that_fails_completely_names_reason_and_retry(
    server: HostileServer, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"none of the 3 videos yields a clip \(3 unreachable\).*retry=unreachable"):
        run(urls(server, 0, 3), tmp_path)
