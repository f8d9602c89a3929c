"""Sources from the metadata of every YFCC100M release, plain and compressed."""

from __future__ import annotations

import bz2
from pathlib import Path

import pytest

from cluster.sources.config import FILES, YfccConfig
from cluster.sources.licenses import license_filter
from cluster.sources.yfcc100m import list_yfcc, video_url
from vgan.errors import InputError

HASHES = {"11": "a" * 32, "12": "b" * 31, "13": "c" * 30, "14": "d" * 32}
ALL = license_filter(["any"])


def row(video: str, columns: int, marker: str = "1", license_code: str = "by") -> str:
    url = f"http://creativecommons.org/licenses/{license_code}/2.0/"
    credit = ["1@N00", "Ann+%C3%A9", "2008-01-01", "1200000000", "camera", "a+title", "words%0Ahere", "new+york,sea"]
    links = ["", "1.0", "2.0", "16", f"http://www.flickr.com/photos/1@N00/{video}/", "http://farm1/x.jpg"]
    rest = [f"{license_code}+License", url, "1", "2", "secret", "original", "jpg", marker]
    id_columns = {23: [video], 24: [video, HASHES[video]], 25: ["0", video, HASHES[video]]}[columns]
    return "\t".join([*id_columns, *credit, *links, *rest])


def metadata(folder: Path, columns: int, suffix: str = "") -> str:
    rows = [
        row("11", columns),
        row("12", columns, marker="0"),
        row("13", columns, license_code="by-nd"),
        row("14", columns),
    ]
    path = folder / f"yfcc100m_dataset{suffix}"
    data = ("\n".join(rows) + "\n").encode()
    path.write_bytes(bz2.compress(data) if suffix == ".bz2" else data)
    hashes = "".join(f"{video}\t{media}\n" for video, media in HASHES.items())
    (folder / "hash.bz2").write_bytes(bz2.compress(hashes.encode()))
    return str(path)


@pytest.mark.parametrize(("columns", "suffix"), [(23, ".bz2"), (23, ""), (24, ""), (25, ".bz2")])
def test_list_yfcc_reads_every_release(tmp_path: Path, columns: int, suffix: str) -> None:
    config = YfccConfig(metadata=metadata(tmp_path, columns, suffix), hashes=f"{tmp_path}/hash.bz2")
    sources, left_out = list_yfcc(config, ALL)
    assert [s.source_id for s in sources] == ["yfcc/11", "yfcc/13", "yfcc/14"]
    assert [s.uri for s in sources] == [
        f"{FILES}/aaa/aaa/{'a' * 32}.mp4",
        f"{FILES}/ccc/ccc/{'c' * 30}.mp4",
        f"{FILES}/ddd/ddd/{'d' * 32}.mp4",
    ]
    assert (sources[0].author, sources[0].tags, sources[0].license) == ("Ann \u00e9", "new york,sea", "by License")
    assert sources[0].page == "http://www.flickr.com/photos/1@N00/11/"
    assert left_out == {}


def test_list_yfcc_applies_licenses_tags_and_limit(tmp_path: Path) -> None:
    config = YfccConfig(metadata=metadata(tmp_path, 25), tags=["New York"])
    sources, left_out = list_yfcc(config, license_filter(["by"]))
    assert ([s.source_id for s in sources], left_out) == (["yfcc/11", "yfcc/14"], {"licence": 1})
    assert len(list_yfcc(config, ALL, limit=1)[0]) == 1
    assert list_yfcc(YfccConfig(metadata=config.metadata, tags=["york"]), ALL) == ([], {})


def test_list_yfcc_counts_videos_without_a_hash(tmp_path: Path) -> None:
    path = metadata(tmp_path, 23)
    (tmp_path / "few").write_text(f"11\t{HASHES['11']}\n")
    sources, left_out = list_yfcc(YfccConfig(metadata=path, hashes=f"{tmp_path}/few"), ALL)
    assert ([s.source_id for s in sources], left_out) == (["yfcc/11"], {"no hash": 2})


def test_list_yfcc_of_another_format_names_file_and_line(tmp_path: Path) -> None:
    path = metadata(tmp_path, 23)
    with pytest.raises(InputError, match=r"give yfcc\.hashes="):
        list_yfcc(YfccConfig(metadata=path), ALL)
    (tmp_path / "other").write_text("a\tb\n")
    for name, message in (
        ("other", "line 1: 2 columns"),
        ("none", "no file at"),
        ("junk.bz2", "cannot be read as bz2"),
    ):
        (tmp_path / "junk.bz2").write_bytes(b"no bz2")
        with pytest.raises(InputError, match=message):
            list_yfcc(YfccConfig(metadata=str(tmp_path / name)), ALL)
    hostile = row("11", 25).replace("a" * 32, "../../../etc/x")
    (tmp_path / "hostile").write_text(hostile + "\n")
    with pytest.raises(InputError, match="no id and media hash"):
        list_yfcc(YfccConfig(metadata=str(tmp_path / "hostile")), ALL)


def test_video_url_takes_hashes_of_any_length() -> None:
    assert video_url("s3://b/mp4", "0123456789") == "s3://b/mp4/012/345/0123456789.mp4"
