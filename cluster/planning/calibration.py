"""A plan compared with the records of a finished dataset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cluster.dataset.manifest import MANIFEST, read_manifest
from cluster.planning.config import MeasuredRates
from cluster.planning.cost_model import CLIP_FPS, CLIP_FRAMES, HOUR
from cluster.prepare.ledger import Ledger, read_records
from cluster.prepare.status import dataset_status
from cluster.storage.files import exists
from cluster.storage.urls import join_url
from vgan.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Measured cost of a preparation beside the planned cost of the same videos."""

    source_hours: float
    core_s: float  # measured, from the commit records
    planned_s: float
    clip_yield: float  # after the gates if the dataset is packed, else before

    @property
    def error(self) -> float:
        """Relative error of the plan: planned over measured core-seconds, minus 1."""
        return self.planned_s / self.core_s - 1

    @property
    def prepare_s(self) -> float:
        """Measured core-seconds per second of video."""
        return self.core_s / (self.source_hours * HOUR)


def calibrate(out: str, rates: MeasuredRates) -> Calibration:
    """Compare the cost in a dataset's commit records with the plan for the same lengths and windows.

    Raises:
        InputError: no video was decoded.
    """
    dataset_status(out)  # raises if there is no dataset
    ledger = Ledger.read(out)
    records = [r for r in read_records(ledger.commit_urls(ledger.all_videos())) if r["probe"] and r["source_s"]]
    if not records:
        raise InputError(f"no video of {out!r} was decoded: there are no rates to compare")
    planned_s = sum(_planned(record, rates) for record in records)
    windows = sum(map(_windows, records))
    clips = sum(len(r["clips"].get("clip_id", ())) for r in records)
    if exists(join_url(out, MANIFEST)):  # counts after the gates; records hold those before
        counts = read_manifest(out).counts
        clips, windows = counts["clips"], counts["windows"]
    return Calibration(
        source_hours=sum(r["source_s"] for r in records) / HOUR,
        core_s=sum(r["seconds"] for r in records),
        planned_s=planned_s,
        clip_yield=clips / windows if windows else 0.0,
    )


def _windows(record: dict[str, Any]) -> int:
    """Count the windows that became clips or were rejected."""
    rejected = sum(
        reject["start_s"] is not None and reject["stage"] not in ("shots", "decode") for reject in record["rejects"]
    )
    return len(record["clips"].get("clip_id", ())) + rejected


def _planned(record: dict[str, Any], rates: MeasuredRates) -> float:
    """Compute the planned core-seconds from the counted windows of 32 frames; `plan` assumes them end to end."""
    probe, seconds = record["probe"], record["source_s"]
    pixels = seconds * (probe["fps"] or CLIP_FPS) * probe["width"] * probe["height"]
    decode_s = pixels / (rates.decode_mpixels_per_s * 1e6)
    stabilize_s = _windows(record) * CLIP_FRAMES / rates.stabilize_frames_per_s
    return (decode_s + stabilize_s) / rates.prepare_efficiency
