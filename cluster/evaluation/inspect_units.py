"""Pictures of the clips with the highest activations of hidden units."""

from __future__ import annotations

import numpy as np

from cluster.checkpoints import store
from cluster.checkpoints.lineage import require_matching_shape
from cluster.dataset.manifest import read_manifest
from cluster.evaluation.config import InspectConfig
from cluster.evaluation.hidden_units import HiddenUnit, collect_unit_clips, find_top_clips
from cluster.runtime.ray_session import ray_session, require_resources
from cluster.storage.files import make_writable_folder, write_json
from cluster.storage.media_files import write_media
from cluster.storage.urls import absolute_url, join_url
from vgan.analysis.hidden_units import make_probe
from vgan.errors import InputError
from vgan.options import require_options
from vgan.viz.panels import unit_panels


def inspect_units(config: InspectConfig) -> None:
    """Find the clips with the highest activations of each unit, then write the pictures and the table.

    Raises:
        InputError: the model does not fit the dataset, or has no such layer or unit, or none of the units is active.
    """
    require_options(config, "data", "checkpoint", "out")
    url, out = absolute_url(config.data), absolute_url(config.out)
    manifest = read_manifest(url)
    model, _ = store.open_model(absolute_url(config.checkpoint))
    require_matching_shape(model.config, manifest.clip, url, "set another data=")
    probe = make_probe(model, config.network, config.layer)
    if invalid := [unit for unit in config.units if not 0 <= unit < probe.num_units]:
        raise InputError(f"units: layer {config.layer} has units 0 to {probe.num_units - 1}, got {invalid[0]}")
    make_writable_folder(out)
    with ray_session(config.address) as is_local:
        if is_local:
            require_resources("a task", cpus=config.cpus)
        top = find_top_clips(probe, url, manifest, num=config.top, cpus=config.cpus)
    chosen = config.units or np.argsort(-top.stands_out, kind="stable")[: config.num_units].tolist()
    units = collect_unit_clips(probe, top, url, manifest, chosen)
    if not units:
        raise InputError("none of these units is active for any clip: choose another layer= or units=")
    sheets = []
    for unit in units:
        title = f"unit {unit.number}, layer {config.layer}: {describe_unit(unit)}"
        panels = unit_panels(title, unit.clips, unit.segmented)
        clips, segmented = (_select_frames(c, unit.frames) for c in (unit.clips, unit.segmented))
        still = unit_panels(title, clips, segmented)[0]
        write_media(panels, still, join_url(out, f"unit-{unit.number:04d}"), config.format, manifest.clip.fps)
        sheets.append(still)
    width = max(sheet.shape[1] for sheet in sheets)
    sheets = [np.pad(s, ((0, 8), (0, width - s.shape[1]), (0, 0)), constant_values=255) for s in sheets]
    write_media(np.vstack(sheets)[None], np.vstack(sheets), join_url(out, "sheet"), ["png"], manifest.clip.fps)
    keys = ("number", "stands_out", "motion", "peaks", "videos", "rows")
    rows = [{key: getattr(unit, key) for key in keys} for unit in units]
    settings = {"checkpoint": config.checkpoint, "network": config.network, "layer": config.layer, "field": probe.field}
    write_json(join_url(out, "units.json"), settings | {"dataset": manifest.digest, "units": rows})
    layer = f"layer {config.layer} of the {config.network}"
    print(f"{layer}: {probe.num_units} units, receptive field of {probe.field} pixels")
    for unit in units:
        print(f"  unit {unit.number:4d}: {describe_unit(unit)}")
    print(f"{len(units)} units over {top.count} clips -> {out}/sheet.png")


def _select_frames(clips: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """Return one frame of each clip, (K, 1, H, W, 3), from clips (K, T, H, W, 3) and frame indices (K,)."""
    return np.stack([clip[[frame]] for clip, frame in zip(clips, frames, strict=True)])


def describe_unit(unit: HiddenUnit) -> str:
    """Format peaks, distance from other clips and dependence on motion of a unit as one line of text."""
    peaks = f"peaks {unit.peaks[0]:.2f} to {unit.peaks[-1]:.2f}"
    return f"{peaks}, {unit.stands_out:.1f} s.d. above others, {unit.motion:.0%} due to motion"
