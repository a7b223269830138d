"""The guide in docs/data.md: every file that it writes and every line that it runs, in their order."""

import re
import shlex

from conftest import ROOT

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_every_line_of_the_guide_runs_and_prints_what_it_shows(worldmodel, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/data.md").read_text()
    guide = page[page.index("## From your files") : page.index("## Formats")]
    ran, printed = 0, ""
    for kind, text in BLOCK.findall(guide):
        if kind == "python":
            exec(text, {})
        elif kind == "yaml":
            (tmp_path / text.split("\n")[0].removeprefix("# ")).write_text(text)
        elif kind == "sh":
            printed = ""
            for line in text.splitlines():
                process = worldmodel(*shlex.split(line, comments=True)[1:])
                printed += process.stdout + process.stderr
                ran += 1
        else:
            assert kind == "text"
            for line in text.splitlines():
                assert line in printed, (line, printed)
    assert ran == 6 and (tmp_path / "lab.png").exists()
    assert printed.count("nothing found") == 2  # a clean end
