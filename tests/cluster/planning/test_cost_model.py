"""Cost model: figures that can be computed by hand, and marks of unmeasured rates."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.planning.calibration import calibrate
from cluster.planning.config import CorpusConfig, MeasuredRates, NodeConfig, PriceConfig
from cluster.planning.cost_model import CAP_S, Corpus, CostPlan, corpus_for_hours, corpus_from_manifest, estimate_cost
from cluster.planning.rates import read_rates
from cluster.planning.report import format_plan
from cluster.sources.manifest import Source, write_sources
from vgan.errors import InputError

# One hour of 100x100 at 25 frames/s: 900 M pixels, 90,000 frames.
RATES = MeasuredRates(
    decode_mpixels_per_s=1.0,
    stabilize_frames_per_s=100.0,
    prepare_efficiency=0.5,
    pack_clips_per_s=10.0,
    clip_yield=0.5,
    gpu_clips_per_s=100.0,
)
VIDEO = CorpusConfig(width=100, height=100, fps=25.0, mbit=8.0, video_s=36.0)
HOUR = Corpus(videos=100, hours=1.0, usable_hours=1.0, bytes=3.6e9, told="")


def planned(corpus: Corpus = HOUR, rates: MeasuredRates = RATES, **more: Any) -> CostPlan:
    values: dict[str, Any] = {"steps": 0, "batch_size": 64, "codec": "raw"} | more
    nodes = values.pop("cpu", NodeConfig(cores=4)), values.pop("gpu", NodeConfig(gpus=2))
    return estimate_cost(
        corpus, values.pop("video", VIDEO), rates, *nodes, values.pop("prices", PriceConfig()), **values
    )


def test_plan_of_an_hour_is_what_is_worked_out_by_hand() -> None:
    result = planned()
    stages = {stage.name: stage for stage in result.stages}
    assert result.clips == 1406  # 3600 s / 1.28 s / 2
    assert stages["decode"].core_hours == pytest.approx(900 / 1 / 0.5 / 3600)
    assert stages["stabilize"].core_hours == pytest.approx(90_000 / 100 / 0.5 / 3600)
    assert stages["stabilize"].wall_hours == pytest.approx(stages["stabilize"].core_hours / 4)
    assert stages["pack"].core_hours == pytest.approx(1406 / 10 / 3600)
    assert result.storage_gb["shards"] == pytest.approx(1406 * 393_216 / 1e9)
    assert result.limits.startswith("decode: 0.1 h, limited by 4 cores") or "stabilize" in result.limits


def test_plan_says_what_each_stage_waits_for() -> None:
    narrow = planned(cpu=NodeConfig(cores=4000, gbit=0.1), steps=1000, gpu=NodeConfig(gpus=2, gbit=1000.0))
    limits = {stage.name: stage.limit for stage in narrow.stages}
    assert limits == {
        "decode": "1 x 0.1 Gbit/s",
        "stabilize": "1 x 0.1 Gbit/s",
        "pack": "1 x 0.1 Gbit/s",
        "train": "2 GPUs",
    }
    seconds = 3600 * sum(s.wall_hours for s in narrow.stages[:2])
    assert seconds == pytest.approx((3.6e9 + 1406 * 393_216) * 8 / 0.1e9)
    fed = planned(steps=1000, gpu=NodeConfig(gpus=2, gbit=1000.0), rates=replace(RATES, gpu_clips_per_s=1e6))
    assert fed.stages[-1].limit == "the feed of 2 workers"
    assert fed.stages[-1].gpu_hours == pytest.approx(64_000 / RATES.feed_clips_per_s / 3600)


def test_plan_counts_flickrs_calls_and_the_hours_that_they_take() -> None:
    result = planned(video=replace(VIDEO, origin="flickr", calls_per_hour=50))
    assert result.requests["Flickr API"] == 101  # one page, and one call per video
    assert result.stages[0].wall_hours == pytest.approx(100.2 / 50)
    assert result.limits == "acquire: 2.0 h, limited by Flickr's 50 calls per hour and key"


def test_plan_adds_money_up_by_item() -> None:
    prices = PriceConfig(gb_in=0.1, gb_month=0.02, months=2, gets=0.5, puts=5.0)
    result = planned(
        prices=prices, cpu=NodeConfig(cores=4, count=3, price=2.0), gpu=NodeConfig(gpus=2, price=10), steps=9
    )
    busy = sum(stage.wall_hours for stage in result.stages if stage.name != "train")
    assert result.money["preparing nodes"] == pytest.approx(busy * 3 * 2.0)
    assert result.money["training nodes"] == pytest.approx(result.stages[-1].wall_hours * 10)
    assert result.money["fetching"] == pytest.approx(0.36)
    assert result.money["storage"] == pytest.approx(2 * 1406 * 393_216 / 1e9 * 0.04)


def test_wanted_hours_come_out_as_hours_of_clips() -> None:
    corpus = corpus_for_hours(100, VIDEO, RATES)
    assert planned(corpus).clip_hours == pytest.approx(100, rel=1e-3)
    long = corpus_for_hours(100, replace(VIDEO, video_s=3600.0), RATES)  # only the first clips of an hour are used
    assert long.videos == pytest.approx(100 * 3600 / CAP_S / 0.5, rel=1e-3)
    assert long.hours == long.videos
    assert planned(long).clip_hours == pytest.approx(100, rel=1e-3)


def test_listed_takes_what_a_manifest_tells_and_says_what_it_assumed(tmp_path: Path) -> None:
    url = str(tmp_path / "s.parquet")
    write_sources(
        [Source(uri=f"/{n}", source_id=str(n), bytes=n * 10**6, duration_s=s) for n, s in ((1, 36.0), (3, 3600.0))], url
    )
    corpus = corpus_from_manifest(url, VIDEO)
    assert (corpus.videos, corpus.bytes, corpus.hours) == (2, 4e6, 1.01)
    assert corpus.usable_hours == pytest.approx((36 + CAP_S) / 3600)
    write_sources([Source(uri=f"/{n}", source_id=str(n), bytes=36 * 10**6) for n in range(2)], url)
    assert corpus_from_manifest(url, VIDEO).hours == pytest.approx(0.02)  # 36 s each at 8 Mbit/s
    (tmp_path / "l.txt").write_text("/a.mp4\n/b.mp4\n")
    assumed = corpus_from_manifest(str(tmp_path / "l.txt"), VIDEO)
    assert (assumed.videos, assumed.hours) == (2, 0.02)
    assert "assumed" in assumed.told


def test_plan_says_what_was_never_measured() -> None:
    text = format_plan(planned(steps=10, rates=MeasuredRates()))
    assert "no GPU was measured: 25% of 100 TFLOP/s assumed" in text
    assert MeasuredRates().date in text


def test_read_rates_takes_a_file_of_some_and_refuses_others(tmp_path: Path) -> None:
    path = tmp_path / "rates.json"
    path.write_text(json.dumps({"date": "2027-01-01", "machine": "m", "gpu_clips_per_s": 900}))
    assert read_rates(str(path)) == MeasuredRates(date="2027-01-01", machine="m", gpu_clips_per_s=900)
    for content, message in (
        ({"gpu_clips_per_s": 1}, "`date` and `machine`"),
        ({"date": "d", "machine": "m", "speed": 1}, "speed"),
        ({"date": "d", "machine": "m", "clip_yield": 0}, "clip_yield must be above 0"),
        ({"date": "d", "machine": "m", "clip_yield": "x"}, "clip_yield must be a number"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(InputError, match=message):
            read_rates(str(path))


def test_plan_of_training_without_gpus_is_refused() -> None:
    with pytest.raises(InputError, match=r"needs gpu\.gpus="):
        planned(steps=1, gpu=NodeConfig())


def test_check_compares_the_model_with_what_commit_records_tell(tmp_path: Path) -> None:
    folder = tmp_path / "work" / "commits"
    folder.mkdir(parents=True)
    probe = {"duration_s": 36.0, "width": 100, "height": 100, "fps": 25.0}
    record = {
        "video": "0" * 20,
        "source_s": 36.0,
        "seconds": 24.0,
        "probe": probe,
        "quarantined": False,
        "clips": {"clip_id": ["a", "b", "c"]},
        "rejects": [
            {"start_s": 1.0, "stage": "screen", "reason": "black"},
            {"start_s": 9.0, "stage": "shots", "reason": "too_short"},  # not a window
            {"start_s": None, "stage": "decode", "reason": "corrupt"},
        ],
    }
    (folder / f"{'0' * 20}.g0.0of1.json").write_text(json.dumps(record))
    result = calibrate(str(tmp_path), RATES)
    planned_s = (9 / 1 + 4 * 32 / 100) / 0.5  # 9 megapixels, four windows of 32 frames
    assert result.planned_s == pytest.approx(planned_s)
    assert (result.error, result.clip_yield) == (pytest.approx(planned_s / 24 - 1), 0.75)
    assert planned(prepare_s=result.prepare_s).total("core_hours") == pytest.approx(24 / 36 + 1406 / 36_000)
