"""README and docs: links lead somewhere, what is named exists, and lines are no longer than the code's."""

import re
import shlex
import tomllib
from contextlib import redirect_stdout, suppress
from functools import cache
from io import StringIO
from pathlib import Path

import pytest
from conftest import ROOT

from worldmodel.arguments import RENAMED, SYNONYMS
from worldmodel.cli import COMMANDS, main

WIDTH = 120
PAGES = sorted([*ROOT.glob("*.md"), ROOT / "data" / "README.md", *(ROOT / "docs").rglob("*.md")])
WRITTEN = [path for path in PAGES if not path.with_suffix(".csv").exists()]  # the others are written by a program
GROUPS = ("policy", "imagine", "data")  # commands with commands below them
ALIKE = {"validate": "fit", "test": "fit"}  # options of a group's other commands
OWN = {"test": "validate", "predict": "validate"}
WHOLE = ("fit", "validate")  # whose --help leaves out Lightning's options
FURTHER = {"compare": ["fit"], "diagnose": ["fit"], "pbt": ["fit", "policy fit"]}  # they take these options too


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$|^    .*$|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL)


@cache
def anchors(path: Path) -> set[str]:
    """Of the headings, as GitHub and MyST name them."""
    titles = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_link_leads_somewhere(path):
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in link:
            file, _, anchor = link.partition("#")
            target = (path.parent / file).resolve() if file else path
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("path", WRITTEN, ids=name_of)
def test_every_file_that_is_named_exists(path):
    text = path.read_text()
    examples = set(re.findall(r"^```python\n# (\S+)", text, re.MULTILINE)) if path.name == "CONTRIBUTING.md" else set()
    for name in set(re.findall(r"(?<![\w./-])((?:worldmodel|tests|conf|benchmarks|docs)/[\w/]+\.\w+)", text)):
        assert name in examples or (ROOT / name).exists(), name


@pytest.mark.parametrize("path", WRITTEN, ids=name_of)
def test_lines_are_no_longer_than_the_codes(path):
    long = [
        line
        for line in path.read_text().splitlines()
        if len(line.lstrip("+-")) > WIDTH and not line.startswith("|") and "://" not in line
    ]
    assert not long


def test_the_layout_is_that_of_the_import_contract():
    drawn = re.findall(r"^    ([a-z_]+(?: \| [a-z_]+)*)   ", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    layers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]["layers"]
    assert sorted(" | ".join(drawn).split(" | ")) == sorted(" | ".join(layers).split(" | "))


def command_lines(path: Path) -> list[list[str]]:
    """The words of each `worldmodel ...` in the page's shell blocks, without comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[line.index("worldmodel") + 1 :] for line in words if "worldmodel" in line]


@pytest.fixture(scope="module")
def options():
    """The options of a command."""

    @cache
    def of(command: str) -> set[str]:
        with redirect_stdout(StringIO()) as out, suppress(SystemExit):
            main([*command.split(), "--help-all" if command.split()[-1] in WHOLE else "--help"])
        further = [option for other in FURTHER.get(command, ()) for option in of(other)]
        return {*re.findall(r"--[\w.]+", out.getvalue()), *further}

    return of


def test_every_option_that_is_named_exists(options):
    seen = set()
    for path in WRITTEN:
        for command, *words in command_lines(path):
            assert command in COMMANDS or command.startswith("-"), f"{path}: worldmodel {command}"
            if command.startswith("-"):
                continue
            group = f"{command} " if command in GROUPS else ""
            name = words[0] if group else command
            known = options(f"{group}{ALIKE.get(name, name)}" if group else OWN.get(name, name))
            for word in words:
                option = word.split("=")[0]
                nested = any("." in name and option.startswith(f"{name}.") for name in known)  # --data.collect.steps
                assert not word.startswith("--") or option in known or nested, f"{path}: worldmodel {command} {word}"
            seen.add(command)
    assert seen == set(COMMANDS)  # every command is shown somewhere


def test_renamed_options_exist_under_the_new_name_and_not_under_the_old_one(options):
    """Of the options of `fit`; the other commands' are of their own."""
    shown = {name: options(name) for name in ("fit", "policy fit", "imagine fit")}
    for old, new in RENAMED.items():
        assert any(f"--{new}" in names for names in shown.values()), new
        for name, names in shown.items():
            assert not {f"--{new}", f"--{old}"} <= names, f"{name} has {old} and {new}"
    for known in SYNONYMS.values():
        assert f"--{known}" in shown["fit"], known
