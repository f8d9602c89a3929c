"""Selection of clips: bounds, near-duplicates and the cap per source, each after the one before; and the counts."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.prepare.selection import _number_within, apply_filters, candidate_table, summarize_counts
from cluster.sources.manifest import ATTRIBUTION_COLUMNS, Source
from vgan.records import ClipScores
from vgan.video.config import ClipSpec, FilterConfig, VideoConfig

VIDEO = VideoConfig(clip=ClipSpec(num_frames=16, size=32))
FAR_APART = [f"{n:032x}" for n in np.random.default_rng(0).integers(0, 2**62, 40).astype(object) ** 2]


def record(source: str, evidence: list[ClipScores], rejects: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    """Make a commit record of one video with these clips."""
    names = [f"{source}-{n}" for n in range(len(evidence))]
    scores = {key: [asdict(e)[key] for e in evidence] for key in asdict(ClipScores())}
    lineage = {"source_id": [source] * len(names), "source_uri": [f"/v/{source}"] * len(names)}
    columns = {"clip_id": names, "start_s": [float(n) for n in range(len(names))], "shot": [0] * len(names), **lineage}
    return {
        "source": asdict(Source(uri=f"/v/{source}", source_id=source)),
        "source_s": 3.6,
        "quarantined": False,
        "rejects": list(rejects),
        "data": f"work/units/{source}.frames" if names else None,
        "clips": columns | scores | {"decoder": ["x"] * len(names), "crc32": [0] * len(names)} if names else {},
    }


def table(*records: dict[str, Any]) -> pa.Table:
    sources = [Source(**r["source"]) for r in records]
    return candidate_table(list(records), sources, VIDEO)


def good(fingerprint: str, **scores: Any) -> ClipScores:
    return ClipScores(**{"inlier_ratio": 0.9, "motion": 3.0, "fingerprint": fingerprint} | scores)


def test_judge_applies_bounds_before_duplicates():
    clips = table(record("a", [good(FAR_APART[0], residual_px=50.0)]), record("b", [good(FAR_APART[0])]))
    first, second = apply_filters(clips, FilterConfig())
    assert first is not None
    assert first[0] == "large_residual"
    assert second is None


def test_judge_rejects_near_duplicate_of_another_source_and_names_the_accepted_clip():
    clips = table(record("a", [good(FAR_APART[0])]), record("b", [good(FAR_APART[0]), good(FAR_APART[1])]))
    verdicts = apply_filters(clips, FilterConfig())
    assert [v and v[0] for v in verdicts] == [None, "near_duplicate", None]
    assert "a-0" in verdicts[1][1]
    assert apply_filters(clips, FilterConfig(disabled=["near_duplicate"])) == [None, None, None]


def test_judge_accepts_duplicates_within_a_source():
    clips = table(record("a", [good(FAR_APART[0]), good(FAR_APART[0])]))
    assert apply_filters(clips, FilterConfig()) == [None, None]


def test_judge_accepts_another_moment_of_the_same_picture():
    signs = ["0000ffff" * 8, "ffff0000" * 8, ""]  # opposite changes; none are stored
    clips = table(*(record(name, [good(FAR_APART[0], motion_signs=s)]) for name, s in zip("abc", signs, strict=True)))
    assert [v and v[0] for v in apply_filters(clips, FilterConfig())] == [None, None, None]
    pictures = apply_filters(clips, FilterConfig(min_duplicate_similarity=-1))
    assert [v and v[0] for v in pictures] == [None, "near_duplicate", "near_duplicate"]


def test_judge_cap_counts_passing_clips_only():
    evidence = [good(FAR_APART[n], residual_px=50.0 if n == 0 else 0.2) for n in range(4)]
    verdicts = apply_filters(
        table(record("a", evidence), record("b", [good(FAR_APART[9])])), FilterConfig(max_clips_per_video=2)
    )
    assert [v and v[0] for v in verdicts] == ["large_residual", None, None, "source_cap", None]


def test_count_every_source_is_accepted_or_rejected_for_its_most_frequent_reason():
    broken = {"start_s": None, "stage": "decode", "reason": "corrupt", "detail": ""}
    short = {"start_s": 0.0, "stage": "shots", "reason": "too_short", "detail": ""}
    records = [record("a", [good(FAR_APART[0])]), record("b", [], (short, broken, short))]
    clips = table(*records)
    rejects = [{"source_id": "b", **row} for row in records[1]["rejects"]]
    counts = summarize_counts(records, rejects, clips)
    assert (counts["sources"], counts["accepted"], counts["rejected"], counts["clips"]) == (2, 1, 1, 1)
    assert counts["rejected_by_reason"] == {"too_short": 1}
    assert counts["segments_rejected_by_reason"] == {"decode": {"corrupt": 1}, "shots": {"too_short": 2}}
    assert counts["windows"] == 1
    assert counts["source_hours"] == 0.002


def test_candidates_have_attribution_columns_only_if_a_source_has_attribution() -> None:
    records = [record("a", [good(FAR_APART[0])]), record("b", [good(FAR_APART[1])])]
    plain = [Source(uri="/v/a", source_id="a"), Source(uri="/v/b", source_id="b")]
    assert not set(ATTRIBUTION_COLUMNS) & set(candidate_table(records, plain, VIDEO).column_names)
    attributed = replace(plain[0], license="Attribution License", author="Ann", page="https://p/a", tags="sea")
    clips = candidate_table(records, [attributed, plain[1]], VIDEO)
    assert clips.select(ATTRIBUTION_COLUMNS).to_pylist() == [attributed.credits, plain[1].credits]


def test_number_within_interleaved_sources():
    owner = np.random.default_rng(0).integers(0, 5, 200)
    assert _number_within(owner).tolist() == [int((owner[: i + 1] == o).sum()) for i, o in enumerate(owner)]
    assert _number_within(owner[:0]).tolist() == []
