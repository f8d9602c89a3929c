"""A dataset's card: what it is made of, under which licences, what was refused, and how its clips are distributed."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

import numpy as np

from cluster import storage
from cluster.deletion import deleted_rows, read_deleted
from cluster.inspection import funnel_text
from cluster.runs import flatten
from cluster.shards import read_clips, read_manifest
from cluster.sources import CREDITS
from vgan.config import VideoConfig
from vgan.viz.distributions import card_picture, histogram

SCORES = {
    "motion": "motion, 0..255",
    "residual_px": "residual, pixels at 128 px",
    "jitter_px": "camera movement removed, pixels at 128 px",
    "filled_fraction": "filled fraction",
}
UNKNOWN = "not told"


def card(url: str) -> dict[str, Any]:
    """What a dataset's manifest and the small columns of its shards tell, as JSON.

    Raises:
        BadInput: no finished dataset there.
    """
    manifest = read_manifest(url)
    # Those on the deletion list too: leaving them out would hide what the files still hold.
    table = read_clips(url, manifest, ["source_id", "source_uri", "start_s"], optional=[*SCORES, *CREDITS])
    clip_s = manifest.clip.num_frames / manifest.clip.fps
    videos = table.group_by("source_id").aggregate([("start_s", "count")])
    scores = {title: table[name].to_numpy() for name, title in SCORES.items() if name in table.column_names}
    per_video = {"seconds of clips a video": videos["start_s_count"].to_numpy() * clip_s}
    told = "license" in table.column_names
    licenses: dict[str, dict[str, Any]] = {}
    names = ["source_id", "license", "license_url", "author"] if told else ["source_id"]
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
    settings = flatten(manifest.config["video"])
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
    """Write card.json, card.md and card.png into a dataset's folder; gives their urls."""
    found = card(url)
    drawn = {title: (d["counts"], d["edges"]) for title, d in found["distributions"].items()}
    content = {
        "card.json": storage.json_bytes(found),
        "card.md": card_text(found).encode(),
        "card.png": card_picture(drawn),
    }
    places = [storage.join(url, name) for name in content]
    for place, data in zip(places, content.values(), strict=True):
        storage.write_bytes(place, data)
    return places


def card_text(found: dict[str, Any]) -> str:
    """The card as Markdown."""
    counts, clip = found["counts"], found["clip"]
    licenses = [
        f"| {_cell(name)} | {_cell(row['url'] or '')} | {row['videos']:,} | {row['authors']:,} | {row['clips']:,} |"
        for name, row in found["licenses"].items()
    ]
    numbers = [
        f"| {title} | " + " | ".join(f"{d[key]:.3g}" for key in ("p5", "median", "mean", "p95")) + " |"
        for title, d in found["distributions"].items()
    ]
    changed = [f"| `{key}` | {_cell(str(value))} |" for key, value in found["settings_changed"].items()]
    rejected = [f"| {_cell(reason)} | {n:,} |" for reason, n in counts["rejected_by_reason"].items()]
    made = (
        f"{counts['clips']:,} clips of {clip['num_frames']} frames of {clip['size']}x{clip['size']} pixels at "
        f"{clip['fps']:g} frames a second ({clip['seconds']:g} s): {found['hours']:,.2f} hours, {clip['codec']}, "
        f"{found['bytes'] / 1e9:,.3f} GB in {found['shards']} files. Made {found['created']} by commit "
        f"`{found['git_commit']}`."
    )
    came = (
        f"{counts['sources']:,} videos, {counts['source_hours']:,.2f} hours; {counts['accepted']:,} gave clips, "
        f"{counts['rejected']:,} did not. From "
        + "; ".join(f"{_cell(origin)} ({n:,})" for origin, n in found["origins"].items())
        + f". On the deletion list: {found['deleted']['names']:,} names, "
        f"{found['deleted']['clips_left_out']:,} clips of this dataset left out."
    )
    return "\n".join(
        [
            f"# Dataset {found['digest'][:16]}",
            "",
            made,
            "",
            "## Sources",
            "",
            came,
            "",
            *_table("licence | url | videos | authors | clips", licenses),
            "Every clip names its video, and where it was told its licence, author and page, in the shards' columns.",
            "",
            "## Rejected videos, by their most frequent reason",
            "",
            *_table("reason | videos", rejected),
            "Yield by stage and reason:",
            "",
            "```",
            funnel_text(counts),
            "```",
            "",
            *_scene_lines(counts.get("scenes")),
            "## Distributions",
            "",
            *_table("of the clips | 5 % | median | mean | 95 %", numbers),
            "![histograms](card.png)",
            "",
            "## Settings that are not the defaults",
            "",
            *_table("setting | value", changed),
        ]
    )


def _scene_lines(scenes: dict[str, Any] | None) -> list[str]:
    """The section on scenes, of a dataset that was looked at."""
    if not scenes:
        return []
    rows = [
        f"| {name} | {row['clips']:,} | {row['videos']:,} | {row['mean']:.3g} |"
        for name, row in scenes["categories"].items()
    ]
    likeliest = ", ".join(f"{label} ({n:,})" for label, n in scenes["likeliest"].items())
    return [
        *("## Scenes", ""),
        *_table("category | clips | videos | mean probability", rows),
        *(f"Likeliest of all 365 labels: {likeliest}.", ""),
    ]


def _distribution(values: np.ndarray) -> dict[str, Any]:
    low, middle, high = np.quantile(values, (0.05, 0.5, 0.95)).tolist()
    counts, edges = histogram(values)
    return {"mean": float(values.mean()), "p5": low, "median": middle, "p95": high, "counts": counts, "edges": edges}


def _origin(uri: str) -> str:
    """The host or bucket of a url; a local path stays unnamed."""
    protocol, there, rest = uri.partition("://")
    return f"{protocol}://{storage.redact('://' + rest)[3:].partition('/')[0]}" if there else "local files"


def _table(head: str, rows: list[str]) -> list[str]:
    if not rows:
        return ["none", ""]
    return [f"| {head} |", "|" + "---|" * (head.count("|") + 1), *rows, ""]


def _cell(text: str) -> str:
    """Text of others inside a Markdown table."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
