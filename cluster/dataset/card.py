"""Dataset card: sources, licenses, rejects and distributions of the clips' scores, as JSON, Markdown and a figure."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

import numpy as np

from cluster.dataset.deletion_list import deleted_rows, read_deleted
from cluster.dataset.manifest import read_manifest
from cluster.dataset.shards import read_clips
from cluster.sources.manifest import ATTRIBUTION_COLUMNS
from cluster.storage.files import json_bytes, write_bytes
from cluster.storage.urls import join_url, redact
from vgan.options import flatten
from vgan.renamed_keys import upgrade
from vgan.video.config import VideoConfig
from vgan.viz.histograms import histogram, histogram_png

SCORES = {
    "motion": "motion, 0..255",
    "residual_px": "residual, pixels at 128 px",
    "jitter_px": "camera motion removed, pixels at 128 px",
    "filled_fraction": "filled fraction",
}
UNKNOWN = "not stated"


def card(url: str) -> dict[str, Any]:
    """Summarize a dataset's manifest and the small columns of its shards, JSON-serializable.

    Raises:
        InputError: no finished dataset at `url`.
    """
    manifest = read_manifest(url)
    # Includes clips on the deletion list: the files still contain them.
    table = read_clips(url, manifest, ["source_id", "source_uri", "start_s"], optional=[*SCORES, *ATTRIBUTION_COLUMNS])
    clip_s = manifest.clip.num_frames / manifest.clip.fps
    videos = table.group_by("source_id").aggregate([("start_s", "count")])
    scores = {title: table[name].to_numpy() for name, title in SCORES.items() if name in table.column_names}
    per_video = {"seconds of clips per video": videos["start_s_count"].to_numpy() * clip_s}
    has_licenses = "license" in table.column_names
    licenses: dict[str, dict[str, Any]] = {}
    names = ["source_id", "license", "license_url", "author"] if has_licenses else ["source_id"]
    for row in table.select(names).group_by(names).aggregate([([], "count_all")]).to_pylist():
        entry = licenses.setdefault(
            row.get("license") or UNKNOWN, {"url": row.get("license_url"), "videos": 0, "clips": 0, "authors": set()}
        )
        entry["videos"] += 1
        entry["clips"] += row["count_all"]
        entry["authors"] |= {row["author"]} if row.get("author") else set()
    for entry in licenses.values():
        entry["authors"] = len(entry["authors"])
    default = flatten(asdict(VideoConfig()))
    settings = flatten(upgrade(manifest.config["video"]))
    return {
        "digest": manifest.digest,
        "created": manifest.created,
        "git_commit": manifest.git_commit,
        "schema_version": manifest.schema_version,
        "clip": {**asdict(manifest.clip), "seconds": clip_s, "codec": manifest.config.get("codec", "raw")},
        "hours": round(table.num_rows * clip_s / 3600, 6),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "shards": len(manifest.shards),
        "counts": manifest.counts,
        "licenses": dict(sorted(licenses.items())),
        "origins": dict(Counter(_origin(uri) for uri in table["source_uri"].unique().to_pylist()).most_common()),
        "deleted": {"names": len(read_deleted(url)), "clips_left_out": len(deleted_rows(url, manifest))},
        "settings": settings,
        "settings_changed": {k: v for k, v in settings.items() if v != default.get(k)},
        "distributions": {
            title: _distribution(values) for title, values in (per_video | scores).items() if len(values)
        },
    }


def write_card(url: str) -> list[str]:
    """Write card.json, card.md and card.png into a dataset's folder; returns their urls."""
    content = card(url)
    histograms = {title: (d["counts"], d["edges"]) for title, d in content["distributions"].items()}
    files = {
        "card.json": json_bytes(content),
        "card.md": card_text(content).encode(),
        "card.png": histogram_png(histograms),
    }
    urls = [join_url(url, name) for name in files]
    for file_url, data in zip(urls, files.values(), strict=True):
        write_bytes(file_url, data)
    return urls


def card_text(found: dict[str, Any]) -> str:
    """Format a card (the result of `card`) as Markdown."""
    counts, clip = found["counts"], found["clip"]
    licenses = [
        f"| {_cell(name)} | {_cell(row['url'] or '')} | {row['videos']:,} | {row['authors']:,} | {row['clips']:,} |"
        for name, row in found["licenses"].items()
    ]
    distributions = [
        f"| {title} | " + " | ".join(f"{d[key]:.3g}" for key in ("p5", "median", "mean", "p95")) + " |"
        for title, d in found["distributions"].items()
    ]
    changed = [f"| `{key}` | {_cell(str(value))} |" for key, value in found["settings_changed"].items()]
    rejected = [f"| {_cell(reason)} | {n:,} |" for reason, n in counts["rejected_by_reason"].items()]
    summary = (
        f"{counts['clips']:,} clips of {clip['num_frames']} frames of {clip['size']}x{clip['size']} pixels at "
        f"{clip['fps']:g} frames per second ({clip['seconds']:g} s): {found['hours']:,.2f} hours, {clip['codec']}, "
        f"{found['bytes'] / 1e9:,.3f} GB in {found['shards']} files. Created {found['created']} by commit "
        f"`{found['git_commit']}`."
    )
    sources = (
        f"{counts['sources']:,} videos, {counts['source_hours']:,.2f} hours; {counts['accepted']:,} accepted, "
        f"{counts['rejected']:,} rejected. Origins: "
        + "; ".join(f"{_cell(origin)} ({n:,})" for origin, n in found["origins"].items())
        + f". Deletion list: {found['deleted']['names']:,} names, "
        f"{found['deleted']['clips_left_out']:,} clips of this dataset skipped by readers."
    )
    return "\n".join(
        [
            f"# Dataset {found['digest'][:16]}",
            "",
            summary,
            "",
            "## Sources",
            "",
            sources,
            "",
            *_table("license | url | videos | authors | clips", licenses),
            "The shards' columns name each clip's video and, if the source states them, its license, author and page.",
            "",
            "## Rejected videos by most frequent reason",
            "",
            *_table("reason | videos", rejected),
            "Yield by stage and reason:",
            "",
            "```",
            yield_table(counts),
            "```",
            "",
            *_scene_lines(counts.get("scenes")),
            "## Distributions",
            "",
            *_table("score | 5th percentile | median | mean | 95th percentile", distributions),
            "![histograms](card.png)",
            "",
            "## Settings other than the defaults",
            "",
            *_table("setting | value", changed),
        ]
    )


def _scene_lines(scenes: dict[str, Any] | None) -> list[str]:
    """Format the section on scenes; empty for a dataset without scene scores."""
    if not scenes:
        return []
    rows = [
        f"| {name} | {row['clips']:,} | {row['videos']:,} | {row['mean']:.3g} |"
        for name, row in scenes["categories"].items()
    ]
    top_labels = ", ".join(f"{label} ({n:,})" for label, n in scenes["likeliest"].items())
    return [
        *("## Scenes", ""),
        *_table("category | clips | videos | mean probability", rows),
        *(f"Most frequent top label of 365: {top_labels}.", ""),
    ]


def _distribution(values: np.ndarray) -> dict[str, Any]:
    low, median, high = np.quantile(values, (0.05, 0.5, 0.95)).tolist()
    counts, edges = histogram(values)
    return {"mean": float(values.mean()), "p5": low, "median": median, "p95": high, "counts": counts, "edges": edges}


def _origin(uri: str) -> str:
    """Return protocol and host (or bucket) of a url, "local files" for a local path."""
    protocol, separator, rest = uri.partition("://")
    return f"{protocol}://{redact('://' + rest)[3:].partition('/')[0]}" if separator else "local files"


def _table(head: str, rows: list[str]) -> list[str]:
    if not rows:
        return ["none", ""]
    return [f"| {head} |", "|" + "---|" * (head.count("|") + 1), *rows, ""]


def _cell(text: str) -> str:
    """Escape text from outside the program for a Markdown table cell."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def yield_table(counts: dict[str, Any]) -> str:
    """Format a dataset's counts as a funnel: input videos, rejects by stage and reason, windows, accepted clips."""
    by_stage = counts["segments_rejected_by_reason"]

    def lines(stage: str) -> list[str]:
        return [f"    - {n:>7} {stage}: {reason}" for reason, n in by_stage.get(stage, {}).items()]

    share = counts["clips"] / counts["windows"] if counts["windows"] else 0.0
    return "\n".join(
        [
            f"  {counts['sources']:>9} videos, {counts['source_hours']:.3f} h",
            *(line for stage in ("fetch", "decode", "shots") for line in lines(stage)),
            f"  {counts['windows']:>9} windows",
            *(line for stage in ("screen", "stabilize", "gates") for line in lines(stage)),
            f"  {counts['clips']:>9} clips ({share:.1%} of the windows)",
        ]
    )
