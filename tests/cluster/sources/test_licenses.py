"""License allow-lists and removal of duplicate sources."""

from __future__ import annotations

import pytest

from cluster.sources.licenses import check_license_names, deduplicate, license_filter, license_names
from cluster.sources.manifest import Source
from vgan.errors import InputError

BY_SA = ("Attribution-ShareAlike License", "https://creativecommons.org/licenses/by-sa/2.0/")
CC0 = ("Public Domain Dedication (CC0)", "https://creativecommons.org/publicdomain/zero/1.0/")
RESERVED = ("All Rights Reserved", "")


@pytest.mark.parametrize("entry", ["by-sa", "BY-SA-2.0", BY_SA[0].upper(), BY_SA[1]])
def test_allowing_matches_a_license_by_code_version_name_and_url(entry: str) -> None:
    allowed = license_filter([entry])
    assert allowed(*BY_SA)
    assert not any(allowed(*other) for other in (CC0, RESERVED, (None, None), ("Attribution License", None)))
    assert not license_filter(["by"])(*BY_SA)


def test_allowing_with_an_empty_list_or_any_takes_all() -> None:
    assert license_filter([])(None, None)
    assert license_filter(["any"])(*RESERVED)
    assert license_names(*CC0) >= {"cc0", "cc0-1.0"}


def test_check_known_lists_the_valid_licenses() -> None:
    check_license_names(["cc0", "all rights reserved"], [CC0, RESERVED])
    with pytest.raises(InputError, match=r"'by-3\.0' must be one of 'Attribution-ShareAlike License'"):
        check_license_names(["by-3.0"], [BY_SA])


def test_without_repeats_keeps_the_first_of_a_url_and_of_a_known_content() -> None:
    md5 = "etag:" + "0a" * 16
    first, other = (
        Source(uri="/a", source_id="a", bytes=3, version=md5),
        Source(uri="/d", source_id="d", bytes=4, version=md5),
    )
    same_url, same_content = Source(uri="/a", source_id="b"), Source(uri="/c", source_id="c", bytes=3, version=md5)
    assert deduplicate([first, same_url, same_content, other]) == ([first, other], 2)


def test_without_repeats_does_not_treat_times_or_other_tags_as_content_hashes() -> None:
    for version in ("modified:1700000000.0", "etag:5f3-17bd", None):
        pair = [Source(uri=f"/{n}", source_id=n, bytes=3, version=version) for n in "ab"]
        assert deduplicate(pair) == (pair, 0)


def test_without_repeats_rejects_one_name_for_two_files() -> None:
    with pytest.raises(InputError, match="two videos have the source_id 'a', the second is '/b'"):
        deduplicate([Source(uri="/a", source_id="a"), Source(uri="/b", source_id="a")])
