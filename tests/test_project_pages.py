"""Pages name only what exists: files, links and their headings, functions, packages, jobs and configuration keys."""

from __future__ import annotations

import importlib
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from jobs.__main__ import VERBS
from vgan.renamed_keys import JOB_KEYS, KEYS, SECTIONS

ROOT = Path(__file__).resolve().parents[1]
PATTERNS = ("README.md", ".github/*.md", "*/README.md", "tests/benchmarks/*.md", "infra/k8s/*.md")
PAGES = sorted({path for pattern in PATTERNS for path in ROOT.glob(pattern)})
FORMER = {"CHANGELOG.md"}  # pages that also name files as they were before
PICTURE = ROOT / ".github/data-flow.svg"
MAX_README_BYTES = 14_000
NAME = re.compile(r"`((?:vgan|cluster|jobs)(?:\.\w+)+)`")
FILE = re.compile(r"`((?:vgan|cluster|jobs|infra|tests)/[\w./-]*\w)`")


def name_of(path: Path) -> str:
    """Return a page's path inside the checkout."""
    return str(path.relative_to(ROOT))


def prose(path: Path) -> str:
    """Return a page's text without its blocks of code."""
    return re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings, formed as on GitHub."""
    headings = re.findall(r"^#+ (.*)", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def broken_links(path: Path) -> list[str]:
    """List the relative links and pictures of a page without a target."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if re.match(r"\w+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        page = target / "README.md" if target.is_dir() else target
        if not target.exists() or (anchor and anchor not in anchors(page)):
            broken.append(link)
    return broken


def exists_in_code(name: str) -> bool:
    """Return whether a dotted name is a module, or an attribute of one."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        module, _, attribute = name.rpartition(".")
        return "." in name and bool(module) and hasattr(importlib.import_module(module), attribute)
    return True


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_relative_links_and_their_headings_exist(path: Path) -> None:
    assert broken_links(path) == []


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_functions_named_in_pages_exist(path: Path) -> None:
    names = set(NAME.findall(prose(path)))
    if path.name in ("README.md", "ARCHITECTURE.md") and path.parent in (ROOT, ROOT / ".github"):
        assert len(names) > 20
    assert [name for name in names if not exists_in_code(name)] == []


@pytest.mark.parametrize("path", [path for path in PAGES if path.name not in FORMER], ids=name_of)
def test_files_named_in_pages_exist(path: Path) -> None:
    assert [name for name in FILE.findall(prose(path)) if not (ROOT / name).exists()] == []


def test_readme_is_short_and_shows_the_data_flow() -> None:
    readme = ROOT / "README.md"
    assert len(readme.read_bytes()) < MAX_README_BYTES
    assert f"]({name_of(PICTURE)})" in readme.read_text()


def test_picture_of_the_data_flow_is_readable_in_both_modes_and_has_a_title() -> None:
    text, space = PICTURE.read_text(), "{http://www.w3.org/2000/svg}"
    svg = ET.fromstring(text)
    assert "prefers-color-scheme: dark" in text
    assert svg.get("role") == "img"
    labels = [svg.find(f"{space}{tag}") for tag in ("title", "desc")]
    assert all(label is not None and label.text for label in labels)
    assert svg.get("aria-labelledby", "").split() == [label.get("id") for label in labels if label is not None]
    assert {text.get("class") for text in svg.iter(f"{space}text")} == {"name", "text"}, "colors come from the style"
    assert set(re.findall(r"jobs\.(\w+)", "".join(svg.itertext()))) <= set(VERBS)


def test_table_of_jobs_lists_every_job() -> None:
    table = (ROOT / "README.md").read_text().partition("## Jobs")[2].partition("## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(VERBS)
    page = (ROOT / "jobs/README.md").read_text()
    assert [verb for verb in VERBS if not re.search(rf"jobs\.{verb}\b|make {verb}\b", page)] == []


@pytest.mark.parametrize("package", ["vgan", "cluster"])
def test_every_package_is_described(package: str) -> None:
    readme = (ROOT / "README.md").read_text()
    (row,) = re.findall(rf"^\| \[{package}\].*", readme, re.MULTILINE)
    page = (ROOT / package / "README.md").read_text()
    for folder in (ROOT / package).iterdir():
        if (folder / "__init__.py").exists():
            assert f"`{folder.name}`" in row
            assert f"`{folder.name}`" in page


def test_changelog_lists_every_renamed_key() -> None:
    changelog = (ROOT / ".github/CHANGELOG.md").read_text()
    pairs = [(f"{old}.*", f"{new}.*") for old, new in SECTIONS.items()] + list(KEYS.items())
    pairs += [(old, new) for old, names in JOB_KEYS.items() for new in names]
    assert [pair for pair in pairs if f"| `{pair[0]}` | `{pair[1]}`" not in changelog] == []


def test_broken_pages_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A b, c\n[one](#a-b-c) [two](#absent) [three](absent.md) [four](https://example.org) [five](page.md)\n"
    )
    assert broken_links(page) == ["#absent", "absent.md"]
    assert not exists_in_code("vgan.video.absent")
    assert not exists_in_code("vgan.errors.AbsentError")
    assert exists_in_code("vgan.errors.InputError")
