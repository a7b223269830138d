"""How `make docs` builds these pages and the API reference; a warning is an error, a broken link included."""

import os
import re
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent

project = "worldmodel"
html_title = "worldmodel"
html_theme = "furo"
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 4
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_inherit_docstrings = False
autodoc_typehints_format = "short"
default_role = "code"
suppress_warnings = [
    "ref.python",  # a type whose name two modules have: `Model`
    "myst.header",  # the tables of docs/results begin at the third level
]

PAGES = {HERE / "project" / f"{path.stem.lower()}.md": path for path in ROOT.glob("[A-Z]*.md")}  # of the site, its text
STAND_IN = {path: page for page, path in PAGES.items()}
SECTIONS = ("Args:", "Raises:", "Returns:", "Yields:", "Attributes:", "Example:")


def setup(app):
    app.connect("source-read", _read)
    app.connect("autodoc-process-docstring", _plain, priority=400)  # before napoleon, at 500, reads the sections


def _read(app, docname, source):
    """Pages of the repository's root are shown too, and links to them lead there."""
    page = HERE / f"{docname}.md"
    if not page.exists():
        return
    path = PAGES.get(page, page)

    def moved(link):
        target = (path.parent / link[1]).resolve()
        return f"]({os.path.relpath(STAND_IN.get(target, target), page.parent)}" if target.exists() else link[0]

    source[0] = re.sub(r"\]\(([^)#:\s]+)", moved, path.read_text())


def _plain(app, what, name, obj, options, lines):
    """Docstrings are plain text with `code` in it: what reStructuredText would take for markup is escaped.

    An indented block after a blank line is shown as it stands, unless it belongs to a section such as "Args:".
    """
    if lines and lines[0].startswith("Alias for field number"):  # of a NamedTuple
        lines.clear()
    plain, section, literal = [], False, False
    for before, line in zip(["", *lines], lines, strict=False):
        indented = line.startswith("    ")
        if line and not indented:
            section, literal = line in SECTIONS, False
        elif indented and not section and not literal and not before.strip():
            plain += ["::", ""]
            literal = True
        plain.append(line if literal else _escaped(line))
    lines[:] = plain


def _escaped(line):
    parts = line.split("`")
    if len(parts) % 2 == 0:  # no pairs of backticks
        return re.sub(r"([*|`\\]|_\b)", r"\\\1", line)
    parts[1::2] = [f"``{code}``" for code in parts[1::2]]
    parts[::2] = [re.sub(r"([*|\\]|_\b)", r"\\\1", text) for text in parts[::2]]
    return re.sub(r"(``[^`]+``)(?=\w)", r"\1\\ ", "".join(parts))  # `code`d
