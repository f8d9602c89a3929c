"""Settings of the scene classifier."""

from __future__ import annotations

from dataclasses import dataclass

from vgan.options import check_choice, option
from vgan.scenes.labels import PAPER, category_labels


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """Scene classification of clips by a Places365 classifier; disabled without `weights`."""

    weights: str = option("", "URL of the classifier's file, a Places365 ResNet or SqueezeNet; empty: no scene filter")
    sha256: str = option(
        "", "SHA-256 digest of the classifier's file, hex; other files are refused; empty: computed from the file"
    )
    categories: list[str] = option(
        list(PAPER), "scene categories scored for every clip: golf, beach, train, baby, or Places365 labels"
    )
    frames_per_group: int = option(3, "maximum number of classified frames per interval of a shot")
    group_duration_s: float = option(
        10.0, "length of the intervals of a shot whose clips are classified together, seconds"
    )
    gpus: float = option(0.0, "GPUs per task, e.g. 0.05; 0: classification on the CPU")
    keep_categories: list[str] = option(
        [], "categories whose clips are kept, a subset of categories, applied when packing; empty: all categories"
    )
    min_probability: float = option(
        0.2,
        "minimum probability of a kept category, applied when packing (reject reason other_scene); 0: no minimum",
    )

    def __post_init__(self) -> None:
        for category in self.categories:
            category_labels(category)
        if not self.categories or len(set(self.categories)) < len(self.categories):
            raise ValueError(f"scene.categories must list at least one category, each once; got {self.categories}")
        for category in self.keep_categories:
            check_choice("scene.keep_categories", category, tuple(self.categories))
        if self.frames_per_group < 1 or self.group_duration_s <= 0 or self.gpus < 0:
            got = f"got {self.frames_per_group}, {self.group_duration_s} and {self.gpus}"
            raise ValueError(
                f"scene.frames_per_group must be at least 1, group_duration_s above 0 and gpus 0 or more, {got}"
            )
        if not 0 <= self.min_probability <= 1:
            raise ValueError(f"scene.min_probability must be in 0..1, got {self.min_probability}")

    @property
    def scored_categories(self) -> list[str]:
        """Categories scored for every clip; empty without a classifier."""
        return self.categories if self.sha256 else []
