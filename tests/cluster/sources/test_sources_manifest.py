"""Sources from folders, globs, lists and manifests, and the errors of bad ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.sources.manifest import Source, Sources, list_folder, read_sources, write_sources
from vgan.errors import InputError

HOSTILE = ("-i.mp4", "a b\u00e9.mp4", "100%.avi", "a#b?.mov", "x[1].mp4", "a::b.mp4", "$(touch x).mkv", "UPPER.MP4")


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Folder with three videos, one of them in a subfolder, and two other files."""
    folder = tmp_path / "videos"
    for name in ("b.mp4", "a.AVI", "deep/er/c.webm", "notes.txt", "deep/cover.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * len(name))
    return folder


def test_list_folder_finds_videos_below_by_suffix_and_counts_the_rest(videos: Path) -> None:
    sources, num_skipped = list_folder(str(videos))
    assert num_skipped == 2
    assert all(s.version for s in sources)  # modification time
    assert [replace(s, version=None) for s in sources] == [
        Source(uri=f"{videos}/{name}", source_id=name, bytes=len(name)) for name in ("a.AVI", "b.mp4", "deep/er/c.webm")
    ]


def test_list_folder_lists_the_files_of_cameras_discs_and_phones(tmp_path: Path) -> None:
    names = {f"a{suffix}" for suffix in (".MTS", ".vob", ".3g2", ".f4v", ".divx", ".dv", ".m2ts", ".h264")}
    for name in names:
        (tmp_path / name).write_bytes(b"video")
    sources, num_skipped = list_folder(str(tmp_path))
    assert ({s.source_id for s in sources}, num_skipped) == (names, 0)


def test_list_folder_takes_names_as_they_are(tmp_path: Path) -> None:
    for name in HOSTILE:
        (tmp_path / name).write_bytes(b"video")
    sources, _ = list_folder(f"{tmp_path}/")
    assert {s.source_id for s in sources} == set(HOSTILE)
    assert all(Path(s.uri).read_bytes() == b"video" for s in sources)


def test_list_folder_that_is_missing_or_a_file_is_bad_input(videos: Path) -> None:
    for url in (videos / "nowhere", videos / "b.mp4"):
        with pytest.raises(InputError, match=f"no folder at '{url}'"):
            list_folder(str(url))


def test_read_sources_takes_a_folder_or_a_glob(videos: Path) -> None:
    assert [s.source_id for s in read_sources(str(videos))] == ["a.AVI", "b.mp4", "deep/er/c.webm"]
    assert [s.source_id for s in read_sources(f"{videos}/*.mp4")] == ["b.mp4"]
    with pytest.raises(InputError, match=r"no video in .*\*\.mkv"):
        read_sources(f"{videos}/*.mkv")


def test_read_sources_gives_back_what_write_sources_wrote(tmp_path: Path) -> None:
    written = [
        Source(uri="s3://b/a b\u00e9.mp4", source_id="a", bytes=7, label="Run", split="train"),
        Source(uri="/v/-i.mp4", source_id="b"),
    ]
    write_sources(written, str(tmp_path / "below" / "sources.parquet"))
    assert read_sources(str(tmp_path / "below" / "sources.parquet")) == written


def test_read_sources_of_a_text_list_names_videos_by_their_uri(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("/v/a.mp4\n\n  s3://b/c\u00e9 d.mp4  \r\n", encoding="utf-8")
    uris = ["/v/a.mp4", "s3://b/c\u00e9 d.mp4"]
    assert read_sources(str(tmp_path / "list.txt")) == [Source(uri=u, source_id=u) for u in uris]


def test_read_sources_of_a_list_takes_relative_paths_from_its_own_folder(tmp_path: Path) -> None:
    (tmp_path / "golf.txt").write_text("golf/a/0001.jpg\ngolf/b/0001.jpg 3\n/elsewhere/c 7.jpg\n")
    names = ["golf/a/0001.jpg", "golf/b/0001.jpg"]
    assert read_sources(str(tmp_path / "golf.txt")) == [
        *(Source(uri=f"{tmp_path}/{name}", source_id=name) for name in names),
        Source(uri="/elsewhere/c 7.jpg", source_id="/elsewhere/c 7.jpg"),
    ]


def test_read_sources_lists_strips_only_for_a_glob_of_images(tmp_path: Path) -> None:
    for name in ("a.mp4", "0001.jpg"):
        (tmp_path / name).write_bytes(b"x")
    assert [s.source_id for s in read_sources(str(tmp_path))] == ["a.mp4"]
    assert [s.source_id for s in read_sources(f"{tmp_path}/*.jpg")] == ["0001.jpg"]


def test_read_sources_of_a_csv_takes_known_columns_with_their_types(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text('uri,label,bytes,rating\n"/v/a,b.mp4",Run,12,5\n/v/c.mp4,,,\n', encoding="utf-8")
    assert read_sources(str(tmp_path / "list.csv")) == [
        Source(uri="/v/a,b.mp4", source_id="/v/a,b.mp4", bytes=12, label="Run"),
        Source(uri="/v/c.mp4", source_id="/v/c.mp4"),
    ]


Write = Callable[[Path], object]


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("none.parquet", lambda path: path.exists(), r"no sources manifest at .*jobs\.acquire"),
        ("junk.parquet", lambda path: path.write_bytes(b"not parquet"), "is not a Parquet file"),
        ("empty.parquet", lambda path: path.write_bytes(b""), "is not a Parquet file"),
        ("columns.csv", lambda path: path.write_text("url,label\n/a.mp4,x\n"), "no column `uri`; .* url, label"),
        ("hole.csv", lambda path: path.write_text("uri,label\n,x\n"), "uri"),
        ("number.csv", lambda path: path.write_text("uri,bytes\n/a.mp4,many\n"), "many"),
        ("empty.txt", lambda path: path.write_text("\n"), "no video in"),
        ("empty", lambda path: path.mkdir(), "no video in"),
        ("twice.txt", lambda path: path.write_text("/a.mp4\n/b.mp4\n/a.mp4\n"), "1 source_id values .* repeat earlier"),
    ],
)
def test_read_sources_of_a_bad_file_names_the_file_and_the_problem(
    tmp_path: Path, name: str, write: Write, message: str
) -> None:
    write(tmp_path / name)
    with pytest.raises(InputError, match=message) as caught:
        read_sources(str(tmp_path / name))
    assert name in str(caught.value)


def test_read_sources_csv_from_a_spreadsheet_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("uri\n/v/a.mp4\n", encoding="utf-8-sig")
    assert read_sources(str(tmp_path / "list.csv")) == [Source(uri="/v/a.mp4", source_id="/v/a.mp4")]


def test_read_sources_of_a_foreign_manifest_fills_in_missing_columns(tmp_path: Path) -> None:
    columns = {
        "uri": ["a.mp4", "s3://b/c.mp4", "/v/d.mp4"],
        "source_id": ["one", None, None],
        "bytes": [7.0, None, 9.0],
    }
    pq.write_table(pa.table(columns | {"rating": [1, 2, 3]}), tmp_path / "s.parquet")
    assert read_sources(str(tmp_path / "s.parquet")) == [
        Source(uri=f"{tmp_path}/a.mp4", source_id="one", bytes=7),
        Source(uri="s3://b/c.mp4", source_id="s3://b/c.mp4"),
        Source(uri="/v/d.mp4", source_id="/v/d.mp4", bytes=9),
    ]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"url": ["/a.mp4"]}, "no column `uri`; its columns are url"),
        ({"uri": ["/a.mp4", None]}, "row 2: a video needs a `uri`"),
        ({"uri": ["/a.mp4"], "bytes": ["many"]}, "many"),
        ({"uri": ["nope://b/a.mp4"]}, "nope://b/a.mp4"),
        ({"uri": ["/a.mp4", "/a.mp4"]}, "1 source_id values .* repeat earlier ones"),
    ],
)
def test_read_sources_of_a_bad_manifest_names_the_problem(
    tmp_path: Path, columns: dict[str, list[str | None]], message: str
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "s.parquet")
    with pytest.raises(InputError, match=message):
        read_sources(str(tmp_path / "s.parquet"))


def test_sources_are_split_by_any_name_that_a_deletion_list_may_use() -> None:
    listed = [Source(uri=f"/{n}", source_id=f"id{n}", page=f"https://p/{n}") for n in range(5)]
    others, matches = Sources.of(listed).partition_by_name({"id0", "/2", "https://p/3", "5"})
    assert (others, matches) == ([listed[1], listed[4]], [listed[0], listed[2], listed[3]])
    assert listed[:3] == Sources.of(listed)[:3]
    assert Sources.of(listed)[::-2] == listed[::-2]
    assert Sources.of(listed)[-1] == listed[-1]
    assert Sources.of(listed) != listed[:4]
