"""The page as one HTML file, which asks for nothing from anywhere: scripts, style and data are in it."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

ASSETS = Path(__file__).parent / "assets"
SCRIPTS = ("engine.js", "dream.js", "truth.js", "pictures.js", "charts.js", "controls.js", "page.js")
POLICY = (
    "default-src 'none'; script-src {scripts}; style-src {style}; img-src data:; connect-src 'self'; base-uri 'none';"
    " form-action 'none'"
)


def policy() -> str:
    """The content security policy: these scripts and this style alone, and requests to the page's own server alone."""
    scripts, style = (
        " ".join(map(_digest, texts)) for texts in ([_read(name) for name in SCRIPTS], [_read("page.css")])
    )
    return POLICY.format(scripts=scripts, style=style)


def document(data: dict[str, Any]) -> str:
    """The page with what it shows; the data may hold any text, as of a stranger's run."""
    parts = {
        "POLICY": policy(),
        "STYLE": _read("page.css"),
        "DATA": json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
        "SCRIPTS": "\n".join(f"<script>{_read(name)}</script>" for name in SCRIPTS),
    }
    first, *rest = _read("page.html").split("{{")
    pieces = [first]
    for piece in rest:
        name, after = piece.split("}}", 1)
        pieces += [parts[name], after]
    return "".join(pieces)


def _read(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
