"""Dataset preparation on the session's Ray: complete counts, no repeated work, deterministic bytes."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster.dataset.card import write_card
from cluster.dataset.deletion_list import add_to_deletion_list, deleted_rows
from cluster.dataset.manifest import Manifest, read_manifest, write_manifest
from cluster.dataset.shards import decode_frames, read_clips
from cluster.dataset.verify import verify_dataset
from cluster.prepare import pipeline
from cluster.prepare.ledger import Ledger, read_records
from cluster.prepare.packing import PackingConfig
from cluster.prepare.pipeline import find_finished, make_plan, name_videos, prepare, prepare_dataset
from cluster.prepare.process_unit import process_unit
from cluster.prepare.status import requeue
from cluster.prepare.work_units import WorkUnit
from cluster.sources.manifest import Source, list_folder
from vgan.errors import InputError
from vgan.synthetic import draw_clip
from vgan.video.config import ClipSpec, DecodeConfig, FilterConfig, StabilizeConfig, VideoConfig
from vgan.video.encode import write_mp4

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

# 11 clips per video at this stride: two videos fill one shard of 20 clips and start a second.
VIDEO = VideoConfig(
    clip=ClipSpec(num_frames=16, size=32, stride=4),
    decode=DecodeConfig(short_side=96),
    stabilize=StabilizeConfig(size=96),
    filters=FilterConfig(disabled=["near_duplicate"]),  # synthetic videos are similar
)
GOOD = ("-i spin.mp4", "b\u00f6unce.mp4")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Source]:
    """Two videos that yield clips, and three that do not: noise bytes, an empty file, a missing file."""
    folder = tmp_path_factory.mktemp("videos")
    for name, scene in zip(GOOD, ("Spin", "Bounce"), strict=True):
        write_mp4(draw_clip(scene, num_frames=56, size=(96, 128)).frames, folder / name, 25.0)
    (folder / "garbage.mp4").write_bytes(hashlib.sha512(b"not a video").digest() * 100)
    (folder / "empty.mp4").write_bytes(b"")
    listed, _ = list_folder(str(folder))
    labeled = [replace(s, label="Moving", split="train") if s.source_id in GOOD else s for s in listed]
    return [*labeled, Source(uri=str(folder / "missing.mp4"), source_id="missing.mp4")]


def run(
    sources: list[Source],
    out: Path,
    seed: int = 0,
    config: VideoConfig = VIDEO,
    codec: str = "raw",
    overwrite: bool = False,
) -> Manifest:
    return prepare(sources, str(out), config, PackingConfig(seed=seed, shard_mb=1, codec=codec), overwrite=overwrite)


@pytest.fixture(scope="module")
def dataset(sources: list[Source], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepare a dataset; tests that change it work on a copy."""
    out = tmp_path_factory.mktemp("clips")
    run(sources, out)
    return out


@pytest.fixture
def copy(dataset: Path, tmp_path: Path) -> Path:
    for path in dataset.rglob("*"):
        if path.is_file():
            target = tmp_path / path.relative_to(dataset)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return tmp_path


def decoded(out: Path) -> dict[str, int]:
    """Return the files of phase 1 (pixels and commit records), each with its modification time."""
    return {str(p.relative_to(out)): p.stat().st_mtime_ns for p in (out / "work").rglob("*") if p.is_file()}


def test_prepare_accounts_for_every_source(dataset: Path) -> None:
    counts = read_manifest(str(dataset)).counts
    assert counts["sources"] == counts["accepted"] + counts["rejected"] == 5
    assert (counts["accepted"], counts["rejected"], counts["clips"]) == (2, 3, 22)
    assert sum(counts["rejected_by_reason"].values()) == 3
    rows = pq.read_table(dataset / "rejects.parquet").to_pylist()
    assert {row["source_id"] for row in rows} == {"garbage.mp4", "empty.mp4", "missing.mp4"}
    assert all(row["reason"] and row["stage"] for row in rows)
    (missing,) = (row for row in rows if row["source_id"] == "missing.mp4")
    assert (missing["stage"], missing["reason"]) == ("fetch", "missing")


def test_prepare_shards_match_the_manifest(dataset: Path, sources: list[Source]) -> None:
    manifest = read_manifest(str(dataset))
    assert [shard.rows for shard in manifest.shards] == [20, 2]
    for shard in manifest.shards:
        data = (dataset / shard.path).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard.bytes, shard.sha256)
    table = read_clips(str(dataset), manifest)
    rows = table.drop_columns("frames").to_pylist()
    assert len({row["clip_id"] for row in rows}) == 22
    uris = {s.source_id: s.uri for s in sources}
    assert {row["source_id"] for row in rows} == set(GOOD)
    assert all(
        (row["source_uri"], row["label"], row["split"]) == (uris[row["source_id"]], "Moving", "train") for row in rows
    )
    starts = sorted(row["start_s"] for row in rows if row["source_id"] == GOOD[0])
    assert starts == pytest.approx([0.16 * n for n in range(11)])
    assert all(row["stabilized"] and row["motion"] > 0 for row in rows)
    assert decode_frames(table["frames"], manifest.clip).std(axis=(1, 2, 3, 4)).min() > 5  # images, not constant frames
    assert manifest.digest == manifest.content_digest()


def test_prepare_again_does_nothing(copy: Path, sources: list[Source]) -> None:
    before, manifest = decoded(copy), read_manifest(str(copy))
    assert run(sources, copy) == manifest
    assert run(sources[::-1], copy) == manifest  # the order of sources has no effect
    assert decoded(copy) == before


def test_prepare_after_a_kill_finishes_the_same_dataset(copy: Path, sources: list[Source]) -> None:
    before, manifest = decoded(copy), read_manifest(str(copy))
    (copy / "manifest.json").unlink()
    (copy / manifest.shards[0].path).write_bytes(b"half a sh")
    (copy / manifest.shards[1].path).unlink()
    lost = sorted((copy / "work" / "commits").iterdir())[
        ::2
    ]  # their pixels stay, as after a kill between the two writes
    for commit in lost:
        commit.unlink()
    assert run(sources, copy).digest == manifest.digest
    assert shard_bytes(copy) == {s.path: s.sha256 for s in manifest.shards}
    remaining = {k: v for k, v in before.items() if not k.endswith(tuple(p.name for p in lost))}
    assert decoded(copy).items() >= remaining.items()  # committed work was not repeated


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the expensive computations of the pipeline: names of videos, ledgers, pending units and inputs digests."""
    counts: Counter[str] = Counter()

    def count(owner: Any, name: str, function: Callable[..., Any]) -> None:
        def counting(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return function(*args, **kwargs)

        monkeypatch.setattr(owner, name, counting)

    count(pipeline, "name_videos", pipeline.name_videos)
    count(pipeline, "inputs_digest", pipeline.inputs_digest)
    count(Ledger, "read", Ledger.read)
    count(Ledger, "pending_units", Ledger.pending_units)
    return counts


def test_prepare_computes_the_inputs_digest_once_and_a_ledger_per_round(
    copy: Path, sources: list[Source], computed: Counter[str]
) -> None:
    run(sources, copy)
    assert computed == {"name_videos": 1, "inputs_digest": 1, "read": 1}  # a finished dataset: compared only
    computed.clear()
    run(sources, copy, overwrite=True)
    assert computed == {"name_videos": 1, "inputs_digest": 1, "read": 1, "pending_units": 1}  # packed again only
    computed.clear()
    (copy / "manifest.json").unlink()
    next((copy / "work" / "commits").iterdir()).unlink()
    run(sources, copy)  # one round of units: the ledger is read before and after it
    assert computed == {"name_videos": 1, "inputs_digest": 1, "read": 2, "pending_units": 2}


def test_prepare_dataset_digests_the_generations_after_a_requeue(copy: Path, sources: list[Source]) -> None:
    packing = PackingConfig(shard_mb=1)
    plan = make_plan(sources, str(copy), VIDEO, packing, overwrite=True)
    assert find_finished(plan) is None
    before = read_manifest(str(copy)).inputs
    assert requeue(str(copy), "missing", plan.videos) == 1
    manifest = prepare_dataset(plan)
    assert manifest.inputs != before
    assert find_finished(make_plan(sources, str(copy), VIDEO, packing)) == manifest


def shard_bytes(out: Path) -> dict[str, str]:
    shards = (out / "shards").rglob("*.parquet")
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in shards}


def test_prepare_in_another_folder_writes_the_same_bytes(dataset: Path, sources: list[Source], tmp_path: Path) -> None:
    manifest = run(sources, tmp_path / "other")
    assert manifest.digest == read_manifest(str(dataset)).digest
    assert shard_bytes(tmp_path / "other") == shard_bytes(dataset)


def test_prepare_with_another_seed_packs_again_without_decoding(copy: Path, sources: list[Source]) -> None:
    before, manifest = decoded(copy), read_manifest(str(copy))
    orders = [read_clips(str(copy), manifest, ["clip_id"])["clip_id"].to_pylist()]
    other = run(sources, copy, seed=1, overwrite=True)
    orders.append(read_clips(str(copy), other, ["clip_id"])["clip_id"].to_pylist())
    assert decoded(copy) == before
    assert other.digest != manifest.digest
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_packing_again_that_fails_leaves_the_old_dataset_readable(
    copy: Path, sources: list[Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("killed")

    manifest = read_manifest(str(copy))
    for name in ("write_manifest", "remove_old_snapshots"):
        with monkeypatch.context() as patch:
            patch.setattr(pipeline, name, fail)
            for seed in (1, 0):  # 0: the same inputs, whose folder is in use
                with pytest.raises(RuntimeError, match="killed"):
                    run(sources, copy, seed=seed, overwrite=True)
                assert verify_dataset(str(copy)) == []
                assert read_manifest(str(copy)).digest == manifest.digest or name == "remove_old_snapshots"
    assert read_manifest(str(copy)).digest == manifest.digest
    assert len(list((copy / "shards").iterdir())) > 1
    run(sources, copy)  # already prepared
    assert shard_bytes(copy) == {s.path: s.sha256 for s in read_manifest(str(copy)).shards}
    assert len(list((copy / "shards").iterdir())) == 1


def test_prepare_replaces_a_dataset_of_an_earlier_version_without_snapshots(copy: Path, sources: list[Source]) -> None:
    manifest = read_manifest(str(copy))
    for shard in manifest.shards:
        (copy / shard.path).rename(copy / "shards" / Path(shard.path).name)
    flat = replace(
        manifest, shards=[replace(shard, path=f"shards/{Path(shard.path).name}") for shard in manifest.shards]
    )
    write_manifest(flat, str(copy))
    assert verify_dataset(str(copy)) == []  # the digest does not depend on the folder
    assert run(sources, copy) == flat
    again = run(sources, copy, overwrite=True)
    assert again.digest == manifest.digest
    assert shard_bytes(copy) == {s.path: s.sha256 for s in again.shards}


def test_prepare_of_other_sources_into_a_finished_dataset_is_refused(copy: Path, sources: list[Source]) -> None:
    before = {p: p.stat().st_mtime_ns for p in copy.rglob("*")}
    with pytest.raises(InputError, match="overwrite=true"):
        run(sources[:1], copy)
    assert {p: p.stat().st_mtime_ns for p in copy.rglob("*")} == before


def test_prepare_with_codec_jpeg_packs_again_without_decoding(copy: Path, sources: list[Source]) -> None:
    before, raw = decoded(copy), read_manifest(str(copy))
    pixels = read_clips(str(copy), raw)
    with pytest.raises(InputError, match="codec"):
        run(sources, copy, codec="jpeg")
    packed = run(sources, copy, codec="jpeg", overwrite=True)
    assert decoded(copy) == before
    assert sum(s.bytes for s in packed.shards) < sum(s.bytes for s in raw.shards) / 2
    assert (packed.config["codec"], packed.digest == raw.digest) == ("jpeg", False)
    strips = read_clips(str(copy), packed)
    assert strips["clip_id"] == pixels["clip_id"]
    decoded_strips, frames = (decode_frames(t["frames"], raw.clip).astype(float) for t in (strips, pixels))
    assert 0 < np.square(decoded_strips - frames).mean() < 255**2 / 10**3.5  # above 35 dB
    again = run(sources, copy, codec="jpeg", overwrite=True)
    assert again.digest == packed.digest


def test_prepare_with_removed_or_added_source_decodes_only_the_new_one(copy: Path, sources: list[Source]) -> None:
    manifest, before = read_manifest(str(copy)), decoded(copy)
    fewer = run([s for s in sources if s.source_id != GOOD[1]], copy, overwrite=True)
    assert (fewer.counts["sources"], fewer.counts["clips"]) == (4, 11)
    assert set(read_clips(str(copy), fewer, ["source_id"])["source_id"].to_pylist()) == {GOOD[0]}
    assert decoded(copy) == before
    twin = Source(uri=next(s.uri for s in sources if s.source_id == GOOD[0]), source_id="twin.mp4")
    more = run([*sources, twin], copy, overwrite=True)
    assert more.counts["clips"] == manifest.counts["clips"] + 11
    assert len(decoded(copy)) == len(before) + 2  # its pixels and its commit record
    with_duplicate_gate = replace(VIDEO, filters=replace(VIDEO.filters, disabled=[], max_duplicate_distance_bits=0))
    counts = run([*sources, twin], copy, config=with_duplicate_gate, overwrite=True).counts
    assert counts["rejected_by_reason"]["near_duplicate"] == 1  # the first of two duplicates is accepted


def test_prepare_with_other_settings_into_the_same_folder_is_refused(copy: Path, sources: list[Source]) -> None:
    before = {p: p.stat().st_mtime_ns for p in copy.rglob("*")}
    with pytest.raises(InputError, match="made with other settings"):
        run(sources, copy, config=replace(VIDEO, clip=replace(VIDEO.clip, stride=8)))
    assert {p: p.stat().st_mtime_ns for p in copy.rglob("*")} == before


def test_prepare_without_any_clip_raises_and_writes_no_dataset(sources: list[Source], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none of the 3 videos yields a clip \(.*missing"):
        run([s for s in sources if s.source_id not in GOOD], tmp_path)
    assert not (tmp_path / "manifest.json").exists()


def test_prepare_with_other_gates_packs_again_without_decoding(copy: Path, sources: list[Source]) -> None:
    before, manifest = decoded(copy), read_manifest(str(copy))
    strict = replace(VIDEO, filters=replace(VIDEO.filters, max_clips_per_video=3))
    with pytest.raises(InputError, match="overwrite=true"):
        run(sources, copy, config=strict)
    fewer = run(sources, copy, config=strict, overwrite=True)
    assert (fewer.counts["clips"], fewer.counts["windows"]) == (6, manifest.counts["windows"])
    assert fewer.counts["segments_rejected_by_reason"]["gates"] == {"source_cap": 16}
    assert decoded(copy) == before
    accepted = read_clips(str(copy), fewer, ["clip_id"])["clip_id"].to_pylist()
    again = run(sources, copy, overwrite=True)
    assert again.digest == manifest.digest
    assert set(accepted) < set(read_clips(str(copy), again, ["clip_id"])["clip_id"].to_pylist())


def test_prepare_after_a_deletion_removes_the_video_and_counts_it_as_rejected(
    sources: list[Source], copy: Path
) -> None:
    before = read_manifest(str(copy))
    assert add_to_deletion_list(str(copy), [GOOD[0]]) == 11
    with pytest.raises(InputError, match="deletion list"):
        run(sources, copy)
    (name,) = name_videos([s for s in sources if s.source_id == GOOD[0]], VIDEO)
    assert any(name in path for path in decoded(copy))
    manifest = run(sources, copy, overwrite=True)
    assert (manifest.counts["clips"], manifest.counts["accepted"], manifest.counts["sources"]) == (11, 1, 5)
    assert manifest.counts["rejected_by_reason"]["deleted"] == 1
    assert read_clips(str(copy), manifest, ["source_id"])["source_id"].unique().to_pylist() == [GOOD[1]]
    assert not any(name in path for path in decoded(copy))
    assert manifest.digest != before.digest
    assert run(sources, copy).digest == manifest.digest  # nothing left to do
    assert len(deleted_rows(str(copy), manifest)) == 0


def test_prepare_copies_attribution_to_every_clip_and_to_the_card(sources: list[Source], copy: Path) -> None:
    attributed = [
        replace(s, license="Attribution License", author="A|nn", page=f"https://p/{s.source_id}") for s in sources[:2]
    ]
    plain = read_manifest(str(copy))
    with pytest.raises(InputError, match="overwrite=true"):
        run([*attributed, *sources[2:]], copy)
    manifest = run([*attributed, *sources[2:]], copy, overwrite=True)
    assert manifest.counts == plain.counts
    credited = [s for s in attributed if s.source_id in GOOD]
    rows = read_clips(str(copy), manifest, ["source_id", "license", "author", "page", "tags"]).to_pylist()
    for source in credited:
        source_rows = [row for row in rows if row["source_id"] == source.source_id]
        assert len(source_rows) == 11
        assert all(
            (r["license"], r["author"], r["page"], r["tags"]) == (source.license, "A|nn", source.page, None)
            for r in source_rows
        )
    urls = write_card(str(copy))
    assert [Path(p).name for p in urls] == ["card.json", "card.md", "card.png"]
    card = json.loads((copy / "card.json").read_text())
    assert card["licenses"]["Attribution License"]["clips"] == 11 * len(credited)
    assert card["licenses"].get("not stated", {"clips": 0})["clips"] == 22 - 11 * len(credited)
    assert sum(card["distributions"]["motion, 0..255"]["counts"]) == 22
    assert f"# Dataset {manifest.digest[:16]}" in (copy / "card.md").read_text()
    assert (copy / "card.png").read_bytes().startswith(b"\x89PNG")


def test_prepare_in_segments_takes_every_segment_and_splits_the_cap(sources: list[Source], tmp_path: Path) -> None:
    halves = replace(VIDEO, decode=replace(VIDEO.decode, segment_s=1.12))  # of 2.24 s
    good = [s for s in sources if s.source_id in GOOD]
    manifest = run(good, tmp_path / "halves", config=halves)
    names = sorted(p.name for p in (tmp_path / "halves" / "work" / "commits").iterdir())
    assert [name.split(".")[2] for name in names] == ["0of2", "1of2"] * 2
    table = read_clips(str(tmp_path / "halves"), manifest, ["source_id", "start_s", "clip_id"]).to_pylist()
    starts = sorted(round(row["start_s"], 2) for row in table if row["source_id"] == GOOD[0])
    assert starts == [0.0, 0.16, 0.32, 0.48, 1.12, 1.28, 1.44, 1.60]
    assert len({row["clip_id"] for row in table}) == 16
    capped = run(good, tmp_path / "capped", config=replace(halves, clip=replace(halves.clip, max_per_video=3)))
    table = read_clips(str(tmp_path / "capped"), capped, ["source_id", "start_s"]).to_pylist()
    starts = sorted(round(row["start_s"], 2) for row in table if row["source_id"] == GOOD[0])
    assert starts == [0.0, 0.16, 1.12, 1.28]


def test_prepare_of_a_file_removed_between_its_segments_counts_each_segment(
    sources: list[Source], tmp_path: Path
) -> None:
    (video,) = (s for s in sources if s.source_id == GOOD[0])
    copied = replace(video, uri=str(tmp_path / "v.mp4"))
    config = replace(VIDEO, decode=replace(VIDEO.decode, segment_s=0.8))  # of 2.24 s: 3 segments
    (name,) = name_videos([copied], config)
    units = [
        WorkUnit(name, copied),
        WorkUnit(name, copied, segment=1, segments=3),
        WorkUnit(name, copied, segment=2, segments=3),
    ]
    (tmp_path / "v.mp4").write_bytes(Path(video.uri).read_bytes())
    listed = replace(copied, version=None)
    for n, unit in enumerate(units):
        if n == 1:
            (tmp_path / "v.mp4").unlink()
        process_unit(asdict(replace(unit, source=listed)), str(tmp_path / "out"), config)
    ledger = Ledger.read(str(tmp_path / "out"))
    assert ledger.is_complete(name)
    records = read_records(ledger.commit_urls([name]))
    assert [r["segment"] for r in records] == [0, 1, 2]
    assert [[j["reason"] for j in r["rejects"]] for r in records[1:]] == [["missing"]] * 2


def test_commit_unit_of_a_segment_past_the_end_commits_no_clips(sources: list[Source], tmp_path: Path) -> None:
    (video,) = (s for s in sources if s.source_id == GOOD[0])
    (name,) = name_videos([video], VIDEO)
    past = WorkUnit(name, video, segment=9, segments=10)  # as a wrong duration in the header would imply
    config = replace(VIDEO, decode=replace(VIDEO.decode, segment_s=1e-3))
    process_unit(asdict(replace(past, segment=8)), str(tmp_path), config)
    counts = process_unit(asdict(past), str(tmp_path), config)
    assert counts["clips"] == 0
    assert len(list((tmp_path / "work" / "commits").iterdir())) == 2
    before = decoded(tmp_path)
    process_unit(asdict(past), str(tmp_path), config)  # a retried task
    assert decoded(tmp_path) == before


def test_prepare_into_a_folder_not_shared_by_workers_raises(
    sources: list[Source],
) -> None:
    with pytest.raises(InputError, match="a folder that all nodes share"):
        prepare(sources[:1], "memory://nowhere", VIDEO, PackingConfig(shard_mb=1))


def test_prepare_rejects_a_source_that_changed_after_listing(sources: list[Source], tmp_path: Path) -> None:
    (video,) = (s for s in sources if s.source_id == GOOD[0])
    path = tmp_path / "v.mp4"
    path.write_bytes(Path(video.uri).read_bytes())
    (listed,) = list_folder(str(tmp_path))[0]
    other = next(s for s in sources if s.source_id == GOOD[1])
    path.write_bytes(Path(video.uri).read_bytes() + b"more")
    changed = run([listed, other], tmp_path / "out")
    assert changed.counts["rejected_by_reason"] == {"changed": 1}
    (listed,) = list_folder(str(tmp_path))[0]  # listed again, it counts as another video
    assert run([listed, other], tmp_path / "out", overwrite=True).counts["accepted"] == 2


def test_prepare_writes_through_any_file_system_url(sources: list[Source], tmp_path: Path) -> None:
    manifest = prepare(
        sources[-1:] + [s for s in sources if s.source_id == GOOD[0]],
        f"file://{tmp_path}/clips",
        VIDEO,
        PackingConfig(shard_mb=1),
    )
    assert read_manifest(f"{tmp_path}/clips") == manifest


def test_prepare_counts_for_prometheus_on_the_nodes_metrics_port(dataset: Path, scrape: Callable[[], str]) -> None:
    run = f'run="{dataset.name}"'
    patterns = [rf'units_total\{{.*outcome="clips".*{run}', rf'rejects_total\{{.*reason="missing",{run},stage="fetch"']
    patterns = [
        f"prepare_{pattern}" for pattern in (*patterns, rf"clips_total\{{.*{run}", rf"source_seconds_total\{{.*{run}")
    ]
    patterns = [rf"ray_scene_{pattern}.*\}} [1-9]" for pattern in (*patterns, rf"pack_clips_total\{{.*{run}")]
    patterns.append(r'ray_tasks\{.*Name="Map\(process_unit_or_error\)"')  # used by an alert
    deadline, text = time.monotonic() + 60, ""  # Ray gathers its workers' counters every few seconds
    while time.monotonic() < deadline and not all(re.search(pattern, text) for pattern in patterns):
        text = scrape()
        time.sleep(1)
    assert [pattern for pattern in patterns if not re.search(pattern, text)] == []
