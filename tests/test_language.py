"""Plain technical English in docstrings, comments, help texts and pages: word list, spelling, form of first lines.

`python tests/test_language.py FILE...` prints the problems of single files.
"""

from __future__ import annotations

import ast
import importlib
import io
import re
import tokenize
from pathlib import Path

import pytest

from jobs.__main__ import VERBS
from jobs.cli import help_text

ROOT = Path(__file__).resolve().parents[1]
CODE = ("vgan", "cluster", "jobs", "infra")
PAGES = ("*.md", ".github/*.md", "vgan/*.md", "cluster/*.md", "jobs/*.md", "tests/**/*.md", "infra/**/*.md")

# Settings class of each job, whose `--help=all` is checked.
JOBS = {
    "acquire": "AcquireConfig",
    "plan": "PlanConfig",
    "prepare": "PrepareConfig",
    "dataset": "DatasetConfig",
    "train": "TrainConfig",
    "generate": "GenerateConfig",
    "predict": "PredictConfig",
    "finetune": "FinetuneJobConfig",
    "evaluate": "EvaluateConfig",
    "inspect": "InspectConfig",
    "study": "StudyConfig",
    "demo": "DemoConfig",
    "submit": "SubmitConfig",
}

# Texts that enter digests, where another spelling would start another MLflow run: by file.
STORED = {"cluster/evaluation/evaluate.py": ("seeded, in turns over classes", "pixel centres at halves")}

# First words of a function's docstring that are neither a verb nor read as one. ruff's D401 finds "Returns", "Making".
NOT_A_VERB = frozenset(
    re.findall(
        r"\w+",
        "a an the this that these those it its all every each any both one no some such same "
        "what which who whose whom how why where when whether if as of for from in on with by to at into after before "
        "everything everyone anything nothing true false",
    )
)

QUESTIONS = {"what", "which", "who", "whose", "how", "why", "where", "when", "whether"}

# Pattern -> what to write instead. Figures of speech, archaisms, agentless sentences and rates without "per".
WORDS = {
    r"\b(?:is|are|was|were|be|been) (?:told|said)\b": "report, print, state: name who or what does it",
    r"\b(?:is|are|was|were|be|been) (?:not )?looked at\b": "read, inspect, score, measure",
    r"\blooks? at\b|\blooking at\b|\blooked at\b|\ba look at\b": "read, inspect, score, measure",
    r"\bshall\b": "must, should or the plain present",
    r"\b(?:told|tells?) apart\b": "distinguish",
    r"\bheeds?\b|\bheeding\b": "handle, follow",
    r"\bhears? of\b": "receive, be notified of",
    r"\bis it well\b|\bgoes well\b|\bis well\b": "diagnostics",
    r"\blast word\b": "final filter",
    r"\bno say\b": "does not apply",
    r"\banew\b": "again",
    r"\bhence\b|\bwhence\b|\bthence\b|\bthereof\b|\blest\b|\bamid\b|\bforthwith\b": "therefore, from, among",
    r"\bat need\b": "if needed",
    r"\bin turns\b": "alternately",
    r"\bno use\b": "pointless, useless: state the effect",
    r"\bwould else\b|\bor else it would\b": "would otherwise",
    r"\bfor eyes\b|\bfor people\b|\bfor a person\b": "name the format: text, table, page",
    r"\bwhat must be said\b|\bmust be said\b|\bmust be told\b": "notes, warnings",
    r"\b(?:asked|told) (?:it )?to (?:go|stop) and\b": "request",
    r"\bgives? out\b": "run out, fail",
    r"\bits own word\b": "name",
    r"\btry it anew\b": "retry",
    r"\bgoes on\b|\bgo on\b|\bgoing on\b|\bwent on\b": "continue, resume",
    r"\bcome to nothing\b|\bcomes to nothing\b": "fail",
    r"\ba rater's number\b": "rater id",
    r"\bat last\b": "finally",
    r"\bof late\b|\bby and by\b": "recently, gradually",
    r"\bthe whole line\b|\bstraight line\b": "pipeline, data flow",
    r"\b(?:frames?|clips?|bytes?|videos?|steps?|requests?|samples?|images?|MB|GB|windows|FLOP|times|seconds) an? "
    r"(?:second|minute|hour|clip|video|frame|step|core|file|shard|worker|task|node|rater|unit|GPU|month|year)\b": (
        "per instead of a in rates"
    ),
}

# British spelling -> American.
SPELLING = {
    r"colour": "color", r"neighbour": "neighbor", r"behaviour": "behavior", r"favour": "favor", r"licence": "license",
    r"labell": "label(ed, ing)", r"modell": "model(ed, ing)", r"cancell(?!ation)": "cancel(ed, ing)",
    r"\bcentre": "center", r"\bmetre": "meter", r"\bgrey": "gray", r"\bcatalogue": "catalog",
    r"(?:normal|organ|recogn|initial|stabil|optim|summar|util|real|serial|visual|minim|maxim|general|quant)is(?:e|ed|es|ing|ation)\b":
        "-ize",
    r"\banalyse": "analyze", r"\bjudgement": "judgment", r"\btowards\b": "toward", r"\bwhilst\b": "while",
}  # fmt: skip

PATTERNS = {re.compile(pattern, re.IGNORECASE): instead for pattern, instead in {**WORDS, **SPELLING}.items()}
ANY = re.compile("|".join([*WORDS, *SPELLING]), re.IGNORECASE)  # most texts have no problem: one search for all


def docstrings(path: Path) -> list[tuple[int, ast.AST, str]]:
    """List (line, node, text) of every docstring in a file."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)]
    pairs = [(node, ast.get_docstring(node)) for node in nodes]
    return [(getattr(node, "lineno", 1), node, text) for node, text in pairs if text]


def strings_and_comments(path: Path) -> list[tuple[int, str]]:
    """List (line, text) of every comment and string of prose (with a space in it) in a Python file."""
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
    wanted = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    return [(token.start[0], token.string) for token in tokens if token.type in wanted and " " in token.string]


def problems_of_text(text: str) -> list[str]:
    """List the word-list and spelling problems of a text, each with its replacement."""
    flat = re.sub(r"\s+", " ", text)
    if not ANY.search(flat):
        return []
    return [f"{match.group(0)!r}: {instead}" for p, instead in PATTERNS.items() for match in p.finditer(flat)]


def problems_of_first_line(node: ast.AST, text: str) -> list[str]:
    """List what is wrong with the first line of a docstring: no verb or noun phrase first, a question."""
    first = text.splitlines()[0]
    word = re.sub(r"\W.*", "", first).lower()
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        decorators = {getattr(d, "id", getattr(d, "attr", "")) for d in node.decorator_list}
        is_noun_phrase = bool(decorators & {"property", "cached_property", "fixture"})
        if word in (QUESTIONS if is_noun_phrase else NOT_A_VERB):
            return [f"first line starts with {word!r}, not with an imperative verb: {first!r}"]
    elif word in QUESTIONS:
        return [f"first line starts with the question word {word!r}: {first!r}"]
    return []


def problems_of_code(path: Path) -> list[str]:
    """List all language problems of a Python file, each with its line."""
    problems = []
    for line, node, text in docstrings(path):
        problems += [f"{path}:{line}: {problem}" for problem in problems_of_first_line(node, text)]
    for line, text in strings_and_comments(path):
        for stored in STORED.get(str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else "", ()):
            text = text.replace(stored, "")
        problems += [f"{path}:{line}: {problem}" for problem in problems_of_text(text)]
    return problems


def problems_of_file(path: Path) -> list[str]:
    """List all language problems of a Python file or a page."""
    if path.suffix == ".py":
        return problems_of_code(path)
    return [f"{path}: {problem}" for problem in problems_of_text(path.read_text())]


def code_and_pages() -> list[str]:
    """List the project's Python files outside tests/ and all its pages, relative to the checkout."""
    paths = {path for folder in CODE for path in (ROOT / folder).rglob("*.py")}
    paths |= {path for pattern in PAGES for path in ROOT.glob(pattern)}
    return sorted(str(path.relative_to(ROOT)) for path in paths)


@pytest.mark.parametrize("name", code_and_pages())
def test_file_is_plain_english(name: str) -> None:
    assert problems_of_file(ROOT / name) == []


@pytest.mark.parametrize("name", [f"{verb} --help" for verb in JOBS])
def test_help_is_plain_english(name: str) -> None:
    verb = name.split()[0]
    job = importlib.import_module(f"jobs.{verb}")
    assert problems_of_text(help_text(getattr(job, JOBS[verb]), job.ABOUT, topic="all", width=100)) == []


def test_every_job_is_listed() -> None:
    assert set(JOBS) == set(VERBS)


def test_files_were_found() -> None:
    names = code_and_pages()
    assert {"README.md", "vgan/__init__.py", ".github/CONTRIBUTING.md", "tests/benchmarks/README.md"} <= set(names)
    assert len(names) > 150


PLANTED = '''
"""What a module is for."""


class Rows:
    """How rows are kept."""

    @property
    def count(self):
        """Number of rows."""


def seen(clips):
    """Whether a clip is looked at."""
    return "25 frames a second, in colour"  # the run goes on


def load(path):
    """Return the rows of a file."""
'''


def test_planted_problems_are_found(tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text(PLANTED)
    problems = " ".join(problems_of_file(tmp_path / "planted.py"))
    for planted in (
        "starts with the question word 'what'",
        "starts with the question word 'how'",
        "starts with 'whether'",
        "'is looked at'",
        "'frames a second'",
        "'colour'",
        "'goes on'",
    ):
        assert planted in problems
    assert "Number of rows" not in problems
    assert "Return the rows" not in problems
    (tmp_path / "planted.md").write_text(
        "A gradient that is longer shall be\nscaled in turns. Licences and neighbours."
    )
    words = [problem.split("'")[1] for problem in problems_of_file(tmp_path / "planted.md")]
    assert sorted(words) == ["Licence", "in turns", "neighbour", "shall"]


def test_plain_text_has_no_problems(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text(
        '"""Rows of a file."""\n\n\ndef load(path):\n    """Return the rows of a file."""\n'
    )
    assert problems_of_file(tmp_path / "plain.py") == []


if __name__ == "__main__":
    import sys

    print(*(problem for name in sys.argv[1:] for problem in problems_of_file(Path(name))), sep="\n")
