"""Job that inspects, verifies, exports or edits a prepared dataset."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from jobs import cli
from vgan.errors import InputError
from vgan.options import option, require_options
from vgan.video.config import VideoConfig

if TYPE_CHECKING:
    from collections.abc import Callable

ABOUT = """Inspect, verify, export or edit a prepared dataset, finished or not. The verb comes before the options.

  python -m jobs.dataset status data=out/clips                     progress, and rejected videos by reason
  python -m jobs.dataset verify data=out/clips                     read every shard and compare it with the manifest
  python -m jobs.dataset inspect data=out/clips                    write inspector.html: clips before and after
  python -m jobs.dataset card data=out/clips                       write card.md, card.json and card.png
  python -m jobs.dataset strips data=out/clips out=out/strips      export the clips as the original's JPEG strips
  python -m jobs.dataset delete data=out/clips names=list.txt      exclude these videos from the next epoch on
  python -m jobs.dataset quarantine data=out/clips                 list videos that killed their decoder
"""


@dataclass(frozen=True, kw_only=True)
class DatasetConfig(VideoConfig):
    """Settings of a dataset verb."""

    print_settings: ClassVar[bool] = False

    data: str = option("", "URL of the dataset's folder", "required")
    out: str = option("", "strips: URL of the folder for the exported strips", "common")
    names: str = option("", "delete: source id, URI or page, or the URL of a .txt list with one per line", "common")
    num_clips: int = option(8, "inspect: clips per group of the page", "common")
    sources: str = option(
        "", "status: count only these videos (manifest, folder or glob) as the sections set; empty: all committed"
    )
    address: str = option(
        "", "verify, strips: address of the Ray cluster; empty: the one this job was submitted to, else a local one"
    )

    def __post_init__(self) -> None:
        if self.num_clips < 1:
            raise ValueError(f"num_clips must be at least 1, got {self.num_clips}")


def print_status(config: DatasetConfig, url: str) -> None:
    """Print the numbers of committed and of rejected videos, the latter by reason."""
    from cluster.prepare.pipeline import name_videos
    from cluster.prepare.scene_scores import video_settings
    from cluster.prepare.status import dataset_status, status_text
    from cluster.sources.manifest import read_sources
    from cluster.storage.urls import absolute_url

    videos = name_videos(read_sources(absolute_url(config.sources)), video_settings(config)) if config.sources else None
    print(status_text(dataset_status(url, videos), url))


def verify(config: DatasetConfig, url: str) -> None:
    """Compare every shard with the manifest and print every difference.

    Raises:
        InputError: the dataset is damaged.
    """
    from cluster.dataset.verify import verify_dataset
    from cluster.runtime.ray_session import ray_session

    with ray_session(config.address):
        problems = verify_dataset(url)
    for problem in problems:
        print(problem)
    if problems:
        raise InputError(f"{url!r} is damaged: {len(problems)} problems; prepare it again with overwrite=true")
    print(f"intact: {url}")


def inspect(config: DatasetConfig, url: str) -> None:
    """Write inspector.html into the dataset's folder."""
    from cluster.prepare.inspector import build_inspection
    from cluster.storage.files import write_bytes
    from cluster.storage.urls import join_url
    from vgan.viz.inspector import render_inspection

    page = join_url(url, "inspector.html")
    write_bytes(page, render_inspection(build_inspection(url, config.num_clips)).encode())
    print(f"{page}: open it in a browser")


def export_strips(config: DatasetConfig, url: str) -> None:
    """Write every clip as one JPEG strip, and list.txt with their names."""
    from cluster.dataset.export_strips import write_strips
    from cluster.runtime.ray_session import ray_session
    from cluster.storage.urls import absolute_url

    require_options(config, "out")
    with ray_session(config.address):
        count = write_strips(url, absolute_url(config.out))
    print(f"{count} strips and their list.txt -> {config.out}")


def write_card(config: DatasetConfig, url: str) -> None:  # noqa: ARG001 - every verb takes both
    """Write card.md, card.json and card.png into the dataset's folder."""
    from cluster.dataset import card

    for path in card.write_card(url):
        print(path)


def delete(config: DatasetConfig, url: str) -> None:
    """Add videos to the dataset's deletion list."""
    from cluster.dataset.deletion_list import add_to_deletion_list
    from cluster.dataset.manifest import MANIFEST
    from cluster.storage.files import exists, read_lines
    from cluster.storage.urls import absolute_url, join_url

    require_options(config, "names")
    names = read_lines(absolute_url(config.names)) if config.names.endswith(".txt") else [config.names]
    if not exists(join_url(url, "work")) and not exists(join_url(url, MANIFEST)):
        raise InputError(f"no dataset at data={url!r}, finished or not")
    count = add_to_deletion_list(url, names)
    print(f"{count} clips are excluded from the next epoch on; prepare with overwrite=true removes them for good")


def print_quarantine(config: DatasetConfig, url: str) -> None:  # noqa: ARG001 - every verb takes both
    """Print the videos that killed their decoder, one per line."""
    from cluster.prepare.status import list_quarantined

    rows = list_quarantined(url)
    for row in rows:
        print(f"{row['reason']}\t{row['source_uri']}\t{row['detail']}\tgeneration {row['generation']}")
    print(f"{len(rows)} in quarantine" + ("; jobs.prepare retry=REASON processes them again" if rows else ""))


VERBS: dict[str, Callable[[DatasetConfig, str], None]] = {
    "status": print_status,
    "verify": verify,
    "inspect": inspect,
    "card": write_card,
    "strips": export_strips,
    "delete": delete,
    "quarantine": print_quarantine,
}


def main(arguments: list[str]) -> int:
    """Run the verb named by the first argument and return the exit code."""
    verb = cli.pop_verb(arguments, VERBS, "jobs.dataset")
    if isinstance(verb, int):
        return verb
    if not verb:
        return cli.run(lambda _: None, DatasetConfig, ABOUT, arguments)

    def job(config: DatasetConfig) -> None:
        from cluster.storage.urls import absolute_url

        require_options(config, "data")
        VERBS[verb](config, absolute_url(config.data))

    return cli.run(job, DatasetConfig, ABOUT, arguments)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
