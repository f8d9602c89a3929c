"""The scene filter on real videos: how fast, what it adds to prepare, what it says. Prints tables; asserts nothing.

    make bench-scenes WEIGHTS=FILE VIDEOS="FILES FOLDERS"

WEIGHTS is a Places365 classifier's file; VIDEOS are files or folders, of pictures too, which are looked at alone.
Videos are named by the folder they lie in.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import cv2
import numpy as np
import torch

from vgan.records import Clip
from vgan.scenes.config import SceneConfig
from vgan.scenes.labels import PAPER, category_probabilities, places365_labels
from vgan.scenes.networks import load_scene_network
from vgan.scenes.preprocess import scene_view
from vgan.scenes.scoring import SceneClassifier, add_scene_scores
from vgan.video.clip_extraction import extract_clips
from vgan.video.config import DecodeConfig, VideoConfig
from vgan.video.decoding.isolated_decoder import Decoder

REPEATS = 8
PICTURES = (".jpg", ".png")
VIDEOS = (".avi", ".mp4", ".mkv", ".mov", ".webm", ".mpg")


def speed(classify: SceneClassifier) -> None:
    """Frames a second of one core, by its own time."""
    rng = np.random.default_rng(0)
    for num in (1, 3, 8):
        views = list(rng.integers(0, 256, (num, 224, 224, 3), np.uint8))
        classify(views)
        rates = []
        for _ in range(REPEATS):
            began = time.process_time()
            classify(views)
            rates.append(num / (time.process_time() - began))
        print(f"{num} pictures of 224 px at once: {np.median(rates):6.1f} frames/s a core (best {max(rates):.1f})")


class Recorder:
    """A classifier whose time and answers are kept."""

    def __init__(self, classify: SceneClassifier) -> None:
        self.classify, self.spent_s, self.answers, self.frames = classify, 0.0, list[np.ndarray](), 0

    def __call__(self, views: list[np.ndarray]) -> np.ndarray:
        began = time.process_time()
        found = self.classify(views)
        self.spent_s += time.process_time() - began
        self.frames += len(views)
        self.answers.append(found.mean(0))
        return found


def cpu_s() -> float:
    """Of this process and the decoders that it has waited for."""
    return sum(os.times()[:4])


def look(videos: list[Path], classify: SceneClassifier, decode_size: int) -> dict[str, list[np.ndarray]]:
    """Probabilities of each stretch by folder; prints what looking adds to all of prepare's work on a video."""
    config = VideoConfig(decode=DecodeConfig(short_side=decode_size), scene=SceneConfig(sha256="of the benchmark"))
    plain = replace(config, scene=SceneConfig())
    recorder, found = Recorder(classify), dict[str, list[np.ndarray]]()
    clips, used = 0, {}
    for name, settings in (("without", plain), ("with", config)):
        began = cpu_s()
        with Decoder(settings.decode) as decoder:
            for video in videos:
                items = extract_clips(decoder.frames(video), settings)
                recorder.answers = []
                if name == "with":
                    items = add_scene_scores(items, recorder, settings.scene)
                clips += sum(isinstance(item, Clip) for item in items)
                found.setdefault(video.parent.name, []).extend(recorder.answers)
        used[name] = cpu_s() - began
    share = recorder.spent_s / max(1e-9, used["with"] - recorder.spent_s)
    print(
        f"decode.short_side={decode_size}: {len(videos)} videos, {clips // 2} clips; {recorder.frames} frames; "
        f"processor time {used['without']:.1f} s without, {used['with']:.1f} s with, {recorder.spent_s:.1f} s of it by "
        f"the classifier: {share:.1%} more"
    )
    return found


def report(found: dict[str, list[np.ndarray]]) -> None:
    """The likeliest labels of each folder, the share of its stretches they are first in, and the paper's categories."""
    print(f"\n{'folder':<16} stretches  first of all, share of the stretches; mean probability")
    for folder, answers in found.items():
        if not answers:
            continue
        p = np.array(answers)
        firsts = Counter(p.argmax(1).tolist()).most_common(5)
        told = ", ".join(f"{places365_labels()[i]} {n / len(p):.0%} ({p[:, i].mean():.2f})" for i, n in firsts)
        print(f"{folder:<16} {len(p):>9}  {told}")
    names = [*PAPER, "racecourse"]
    print(f"\nshare of stretches above a threshold   {'  '.join(f'{name:>14}' for name in names)}")
    for folder, answers in found.items():
        if answers:
            p = category_probabilities(np.array(answers), names)
            cells = [
                " ".join(f"{(p[:, k] >= bound).mean():4.0%}" for bound in (0.1, 0.2, 0.4)) for k in range(len(names))
            ]
            print(f"{folder:<38} {'  '.join(f'{cell:>14}' for cell in cells)}   (0.1 0.2 0.4)")


def main(words: list[str]) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    weights, *places = words
    classify = SceneClassifier(load_scene_network(Path(weights).read_bytes(), weights))
    speed(classify)
    files = [f for place in map(Path, places) for f in (sorted(place.rglob("*")) if place.is_dir() else [place])]
    for picture in (f for f in files if f.suffix.lower() in PICTURES):
        (p,) = classify([scene_view(cv2.cvtColor(cv2.imread(str(picture)), cv2.COLOR_BGR2RGB))])
        print(f"{picture.name}: " + ", ".join(f"{places365_labels()[i]} {p[i]:.2f}" for i in p.argsort()[::-1][:5]))
    videos = [f for f in files if f.suffix.lower() in VIDEOS]
    for size in (128, 256) if videos else ():
        report(look(videos, classify, size))
        print()


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    main(sys.argv[1:])
