"""The configurations that come with the package: `--config quickstart` takes one by its name, in any folder."""

from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "conf"
OPTIONS = ("--config", "-c")


@cache
def presets() -> dict[str, Path]:
    """Name -> file, such as "quickstart" or "policy/cartpole", in alphabetical order."""
    files = sorted(FOLDER.rglob("*.yaml"))
    return {file.relative_to(FOLDER).with_suffix("").as_posix(): file for file in files}


def located(argv: list[str]) -> list[str]:
    """The words of a command line, with the file of each preset that is named as a configuration.

    A file or folder of that name comes first. Where there is no conf/quickstart.yaml, that names the preset too.
    """
    words = list(argv)
    for number, word in enumerate(words):
        if number and words[number - 1] in OPTIONS:
            words[number] = _preset(word)
        elif word.startswith("--config="):
            words[number] = f"--config={_preset(word.removeprefix('--config='))}"
    return words


def packaged(path: str) -> Path:
    """The file, or where there is none and its path begins with conf/, that of the package: presets name such files."""
    name = path.removeprefix("conf/")
    return Path(path) if name == path or Path(path).exists() else FOLDER / name


def _preset(word: str) -> str:
    try:
        if Path(word).exists():
            return word
    except (OSError, ValueError):  # no path at all
        return word
    name = word.removeprefix("conf/").removesuffix(".yaml")
    return str(presets()[name]) if name in presets() else word
