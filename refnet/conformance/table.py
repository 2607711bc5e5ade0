"""The README's table of conventions and its list of choices, generated from the code.

``python -m refnet.conformance.table README.md`` rewrites what stands between two comments of the README. Nothing is
imported but the configuration: docstrings and the tests' markers are read from the sources.
"""

import ast
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import refnet
from refnet.conformance.switches import MORE, SIZES
from refnet.errors import DataError
from refnet.rcnn import config as config_module
from refnet.rcnn.config import ModelConfig
from refnet.rcnn.presets import PRESETS

PEERS = {
    "T": "torchvision", "M": "matterport", "D": "detectron2", "P": "paper", "Mf": "matterport_faithful",
}  # fmt: skip
"""The presets that the table shows; the others are variants, or refnet's own."""

PACKAGE = Path(refnet.__file__).parent

_SENTENCE_END = re.compile(r"(?<!\bal)(?<!\beq)(?<!\bfig)\.\s+")
_LONG = 200  # characters: a cell of the table ends with the sentence before


@dataclass(frozen=True, slots=True, kw_only=True)
class Convention:
    """A switch.

    Attributes:
        sections: the stages that have it: several, where they share one record.
        field: its name there.
        values: each that it may have or that a preset gives it, as text, and which peers' presets do.
        description: the first sentences of its docstring.
    """

    sections: tuple[str, ...]
    field: str
    values: Mapping[str, tuple[str, ...]]
    description: str

    @property
    def names(self) -> tuple[str, ...]:
        """Its dotted names, one for each section."""
        return tuple(f"{section}.{self.field}".removeprefix(".") for section in self.sections)


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkedTest:
    """A test function that is marked as showing some convention: its name, behind that of its class, and its file."""

    name: str
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A paragraph of a docstring: what is done where implementations disagree, or where this departs from the paper.

    Attributes:
        kind: "Choice" or "Deviation".
        path: of the file, below the package.
        owner: the function or class, or nothing for the module's own docstring.
        text: of the paragraph, in one line.
    """

    kind: str
    path: str
    owner: str
    text: str


def conventions() -> list[Convention]:
    """Every convention switch of the network's configuration, in the order of the data flow.

    That is each field that is a choice, a yes or no, or may be None, and each number that isn't the same in all peers
    (their presets, and :data:`MORE`); but none of those that only say how large a network is (:data:`SIZES`).
    """
    docstrings = _field_docstrings(Path(config_module.__file__).read_text())
    settings = {letter: PRESETS[preset]() for letter, preset in PEERS.items()}
    owners: dict[Any, list[str]] = {}
    for name, hint in get_type_hints(ModelConfig).items():
        owners.setdefault(hint if is_dataclass(hint) else ModelConfig, []).append(name)
    found = []
    for owner, names in owners.items():
        sections = ("",) if owner is ModelConfig else tuple(names)
        for name in names if owner is ModelConfig else [entry.name for entry in fields(owner)]:
            values = _listed(get_type_hints(owner)[name])
            for section in sections:
                used = {letter: _get(config, section, name) for letter, config in settings.items()}
                if used["Mf"] == used["M"]:
                    del used["Mf"]
                for letter, value in used.items():
                    values.setdefault(_text(value), {})[letter] = None
                for value in MORE.get(f"{section}.{name}", ()):
                    values.setdefault(_text(value), {})
            if name not in SIZES and len(values) > 1:
                found.append(
                    Convention(
                        sections=sections,
                        field=name,
                        values={text: tuple(letters) for text, letters in values.items()},
                        description=_first_sentences(docstrings[owner.__name__, name]),
                    )
                )
    return found


def _listed(hint: Any) -> dict[str, dict[str, None]]:
    """The values that the type of a field lists, none of which is anybody's yet."""
    choices = [False, True] if hint is bool else get_args(hint) if get_origin(hint) is Literal else []
    return {_text(value): {} for value in choices}


def _get(config: ModelConfig, section: str, name: str) -> Any:
    return getattr(getattr(config, section) if section else config, name)


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_text, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _field_docstrings(source: str) -> dict[tuple[str, str], str]:
    """By class and field, the string below each annotated field, in one line."""
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            for member, below in zip(node.body, node.body[1:], strict=False):
                if isinstance(member, ast.AnnAssign) and isinstance(below, ast.Expr):
                    found[node.name, ast.unparse(member.target)] = " ".join(ast.literal_eval(below.value).split())
    return found


def _first_sentences(text: str) -> str:
    """As many as the cell holds, and at least one."""
    ends = [match.start() + 1 for match in _SENTENCE_END.finditer(text)] + [len(text)]
    return text[: max([end for end in ends if end <= _LONG], default=ends[0])]


def marked_tests(tests: Path) -> dict[str, list[MarkedTest]]:
    """The tests below the folder `tests` under ``@pytest.mark.convention("a.switch", ...)``, by switch.

    Raises:
        DataError: there is no such folder; a marker has an argument that isn't a text written out, or none at all.
    """
    if not tests.is_dir():
        raise DataError(f"{tests}: expected the folder of the tests")
    found: dict[str, list[MarkedTest]] = {}
    for path in sorted(tests.rglob("test_*.py")):
        place = path.relative_to(tests.parent).as_posix()
        for name, node in _definitions(ast.parse(path.read_text())):
            for decorator in node.decorator_list if isinstance(node, ast.FunctionDef) else ():
                if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.convention":
                    for argument in _names(decorator, place):
                        found.setdefault(argument, []).append(MarkedTest(name=name, path=place))
    return found


def _names(marker: ast.Call, place: str) -> Iterator[str]:
    texts = [argument.value for argument in marker.args if isinstance(argument, ast.Constant)]
    if not texts or len(texts) < len(marker.args) + len(marker.keywords):
        raise DataError(f"{place}:{marker.lineno}: expected names of conventions, got {ast.unparse(marker)}")
    yield from map(str, texts)


def choices(package: Path = PACKAGE) -> list[Choice]:
    """Every paragraph of the package's docstrings that begins with "Choice:" or "Deviation:"."""
    found = []
    for path in sorted(package.rglob("*.py")):
        for owner, node in _definitions(ast.parse(path.read_text())):
            for paragraph in re.split(r"\n\s*\n", ast.get_docstring(node) or ""):
                kind, colon, text = paragraph.partition(":")
                if colon and kind in ("Choice", "Deviation"):
                    place = path.relative_to(package).as_posix()
                    found.append(Choice(kind=kind, path=place, owner=owner, text=" ".join(text.split())))
    return found


def _definitions(
    tree: ast.Module | ast.ClassDef | ast.FunctionDef, name: str = ""
) -> Iterator[tuple[str, ast.Module | ast.ClassDef | ast.FunctionDef]]:
    """The module, and every class and function in it, by dotted name."""
    yield name, tree
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield from _definitions(node, f"{name}.{node.name}".removeprefix("."))


def conventions_section(rows: Sequence[Convention], tests: Mapping[str, Sequence[MarkedTest]]) -> str:
    """The table as Markdown."""
    marked = {(test.path, test.name) for entries in tests.values() for test in entries}
    lines = [
        f"{len(rows)} switches, each with the tests that show what it does: {len(marked)} test functions in all.",
        "Letters behind a value say whose preset has it: "
        + ", ".join(f"{letter} `{preset}`" for letter, preset in PEERS.items())
        + ", which stands only where it differs from M.",
        "In the text they stand for the programs themselves, and so do C (ChainerCV) and PF (py-faster-rcnn).",
        "",
        "<details><summary>The table of conventions</summary>",
        "",
        "| switch | values | what it says, and who uses which | tests |",
        "|---|---|---|---|",
    ]
    for row in rows:
        values = ", ".join(" ".join([f"`{text}`", *letters]) for text, letters in row.values.items())
        shown = {(test.name, test.path): None for name in row.names for test in tests.get(name, ())}
        links = ", ".join(f"[{_words(name)}]({path})" for name, path in shown)
        name = f"`{row.names[0]}`" + "".join(f", `{section}.`" for section in row.sections[1:])
        lines.append(
            "| " + " | ".join(_cell(text) for text in (name, values, _markdown(row.description), links)) + " |"
        )
    return "\n".join([*lines, "", "</details>"])


def _words(test: str) -> str:
    """What a test is called, in words: cells break lines only between these."""
    owner, _, name = test.rpartition(".")
    return ": ".join(filter(None, [owner.removeprefix("Test"), name.removeprefix("test_").replace("_", " ")]))


def choices_section(entries: Sequence[Choice]) -> str:
    """The list as Markdown."""
    lines = [
        f"What is done where implementations disagree, from the docstrings of the functions that do it: {len(entries)} notes.",
        "",
        "<details><summary>The list of choices</summary>",
        "",
    ]
    for path in dict.fromkeys(entry.path for entry in entries):
        lines.append(f"- [`{path}`](refnet/{path})")
        for entry in entries:
            if entry.path == path:
                owner = f"`{entry.owner}`: " if entry.owner else ""
                kind = "departs from the paper: " if entry.kind == "Deviation" else ""
                lines.append(f"  - {owner}{kind}{_markdown(entry.text)}")
    return "\n".join([*lines, "", "</details>"])


def _markdown(text: str) -> str:
    """A docstring's text, with its references and literals, in GitHub's Markdown."""
    text = re.sub(r":\w+:`~[\w.]*?(\w+)`", r"`\1`", text)
    text = re.sub(r":\w+:`([^`]*)`", r"`\1`", text).replace("``", "`")
    parts = text.split("`")  # every second one is code
    parts[::2] = [part.replace("<", r"\<") for part in parts[::2]]
    return "`".join(parts)


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def rewritten(readme: str, sections: Mapping[str, str]) -> str:
    """`readme` with each section between its two comments.

    Raises:
        DataError: a section has no two comments in it.
    """
    for name, text in sections.items():
        begin, end = f"<!-- {name}: generated by make conventions -->", f"<!-- end of {name} -->"
        if readme.count(begin) != 1 or readme.count(end) != 1 or readme.index(begin) > readme.index(end):
            raise DataError(f"README: expected {begin} and then {end}, once each")
        before, after = readme.partition(begin)[0], readme.partition(end)[2]
        readme = f"{before}{begin}\n{text}\n{end}{after}"
    return readme


def generated(root: Path) -> dict[str, str]:
    """The sections of the README, by name, from the code and from the tests in `root`."""
    return {
        "conventions": conventions_section(conventions(), marked_tests(root / "tests")),
        "choices": choices_section(choices()),
    }


def main(readme: Path) -> None:
    """Rewrite the sections of `readme`, next to which the folder of the tests lies."""
    text = rewritten(readme.read_text(encoding="utf-8"), generated(readme.resolve().parent))
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m refnet.conformance.table README.md")
    main(Path(sys.argv[1]))
