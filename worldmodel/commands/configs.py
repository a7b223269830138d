"""`worldmodel configs`: the configurations that come with the package, listed, shown or copied."""

from pathlib import Path

from worldmodel.arguments import Parser
from worldmodel.durable import whole_file
from worldmodel.errors import UserError, choose
from worldmodel.presets import presets


def main(argv: list[str]) -> None:
    """Print the list, or one configuration, or copy it."""
    parser = Parser("worldmodel configs", "List, show or copy the configurations that come with the package.")
    parser.add_argument("name", nargs="?", metavar="NAME", help="A configuration, to show it.")
    parser.add_argument("--out", type=Path, metavar="FILE", help="Copy it to this new file, to change it.")
    options = parser.parse_args(argv)
    if options.name is None:
        if options.out is not None:
            raise UserError("--out copies one configuration: name it, worldmodel configs quickstart --out my.yaml")
        _list()
        return
    text = presets()[choose("configuration", options.name, presets())].read_text(encoding="utf-8")
    if options.out is None:
        print(text, end="")
        return
    if options.out.exists():
        raise UserError(f"{options.out} is there already: choose another --out")
    with whole_file(options.out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"copied: {options.out}; worldmodel fit --config {options.out}")


def _list() -> None:
    """Each name with what its first comment says of it."""
    width = max(map(len, presets()))
    for name, path in presets().items():
        with path.open(encoding="utf-8") as file:
            first = file.readline()
        print(f"{name:{width}}  {first.removeprefix('#').strip() if first.startswith('#') else ''}")
