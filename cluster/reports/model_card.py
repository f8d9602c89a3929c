"""Contents of a model card, gathered from an evaluation, its checkpoints and a fine-tuning sweep."""

from __future__ import annotations

import datetime
import importlib.metadata
import tempfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from cluster.dataset.shards import read_frames
from cluster.evaluation.config import EvaluateConfig
from cluster.evaluation.evaluate import Evaluation, EvaluationRow
from cluster.evaluation.models import EvaluatedModel
from cluster.evaluation.results import LINES, footnotes, metrics_by_kind, table_cells
from cluster.storage.files import exists, read_json
from cluster.transfer.sweep_results import to_results
from vgan.errors import InputError
from vgan.training import diagnostics
from vgan.transfer.accuracy_curves import accuracies, relative_gains
from vgan.video.encode import write_mp4
from vgan.viz.figures import figure_png, label_fraction_figure, spectrum_figure
from vgan.viz.model_card import Card, CardModel, Metric, render_card
from vgan.viz.panels import clips_panels, film_strip, sample_grid
from vgan.viz.report import Media

SAMPLES, PANELS, PAIRS = 16, 4, 6  # clips in the grid, with streams, and beside neighbors


def model_card(found: Evaluation, config: EvaluateConfig) -> str:
    """Render the model card of all models of an evaluation as HTML.

    Raises:
        InputError: transfer= names no results of a sweep.
    """
    (_, *rows), *lines = table_cells(found)
    metrics = tuple(
        Metric(heading=heading, name=", ".join(names), about=LINES[word][1], values=tuple(values))
        for (word, names), (heading, *values) in zip(metrics_by_kind(found).items(), lines, strict=True)
    )
    by_name = {row.name: row for row in found.rows}
    spectra = {row.name: row.spectrum for row in found.rows}
    plot = figure_png(spectrum_figure(spectra, found.protocol["num_frames"]))
    fps = found.protocol["fps"]
    card = Card(
        title=f"Model card: {', '.join(s.name for s in found.subjects) or 'clips'}",
        created=f"{datetime.datetime.now():%Y-%m-%d %H:%M}, version {importlib.metadata.version('scene-dynamics')}",
        rows=tuple(rows),
        metrics=metrics,
        notes=tuple(footnotes(found)),
        protocol=tuple((key.replace("_", " "), str(value)) for key, value in found.protocol.items()),
        spectra=Media(data=plot, media_type="image/png", alt="Temporal spectra of all sets of clips"),
        models=tuple(_model(subject, by_name[subject.name], config, fps) for subject in found.subjects),
    )
    return render_card(_with_transfer(card, config.sweep_results) if config.sweep_results else card)


def _model(subject: EvaluatedModel, row: EvaluationRow, config: EvaluateConfig, fps: float) -> CardModel:
    model = subject.model
    codes = model.sample_latents(config.num_clips, config.seed)  # the same codes as in the evaluation
    clips = model.decode(codes[:SAMPLES])
    assert model.generator is not None
    network, parameters = model.config, sum(p.numel() for p in model.generator.parameters())
    streams = None
    if clips.mask is not None:
        streams = _video(clips_panels(clips, PANELS), fps, "Clips, foreground, mask and background")
    return CardModel(
        name=subject.name,
        about=f"{network.architecture.replace('_', ' ')}, base width {network.base_width}, "
        f"{network.num_frames} frames of {network.size} px, {parameters:,} parameters",
        samples=_video(sample_grid(clips.video, scale=2), fps, f"The first {len(clips.video)} of the evaluated clips"),
        streams=streams,
        neighbours=_nearest_pairs(subject, row, codes) if row.copies else None,
        health=tuple((key, f"{value:.3g}") for key, value in sorted(subject.health().items())),
        warnings=tuple(diagnostics.diagnose(subject.health()).values()),
        lineage=tuple((key.replace("_", " "), value) for key, value in (row.lineage | subject.origin()).items()),
        remark=row.remark,
    )


def _nearest_pairs(subject: EvaluatedModel, row: EvaluationRow, codes: np.ndarray) -> Media:
    """Draw the generated clips most likely to be copies, each above its nearest training clip."""
    nearest = row.copies[:PAIRS]
    generated = subject.model.decode(codes[[i for i, _, _ in nearest]]).video
    assert subject.training is not None
    rows = np.array([j for _, j, _ in nearest])
    unique_rows, inverse = np.unique(rows, return_inverse=True)
    training = read_frames(subject.training_url, subject.training, unique_rows)[inverse]
    lines = [film_strip(clip) for pair in zip(generated, training, strict=True) for clip in pair]
    space = np.full((4, lines[0].shape[1], 3), 255, np.uint8)
    sheet = np.vstack([part for line in lines for part in (line, space)])
    data = cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))[1].tobytes()
    spans = f"{min(d for *_, d in nearest):.2f} to {max(d for *_, d in nearest):.2f}"
    return Media(
        data=data,
        media_type="image/png",
        alt="Generated clips above their nearest training clips",
        caption=f"The {len(nearest)} generated clips (rows 1, 3, ...) most likely to be copies, each above its nearest "
        f"training clip; every fourth frame. Pattern distances {spans}: 0 is a copy, 1.41 is chance.",
    )


def _video(frames: np.ndarray, fps: float, alt: str) -> Media:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clips.mp4"
        write_mp4(frames, path, fps)
        return Media.from_file(path, alt=alt, caption=alt)


def _with_transfer(card: Card, url: str) -> Card:
    """Add the label-efficiency figure of a fine-tuning sweep to a card."""
    if not exists(url):
        raise InputError(f"no sweep results at sweep_results={url!r}: give results.json of jobs.finetune")
    rows = read_json(url)
    labels = {"protocol": rows[0]["protocol"], "chance": rows[0]["chance"]}
    results = to_results([row for row in rows if row["protocol"] == labels["protocol"]])
    plot = figure_png(label_fraction_figure(accuracies(results), relative_gains(results), **labels))
    figure = Media(data=plot, media_type="image/png", alt="Accuracy against label fraction")
    return replace(card, transfer=figure, transfer_protocol=labels["protocol"])
