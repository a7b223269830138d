"""The subcommands of `worldmodel policy` and `worldmodel imagine`: told and checked before heavy imports."""

from worldmodel.commands.parser import fail
from worldmodel.errors import nearest

SUBCOMMANDS = ("fit", "validate", "test")


def chosen(argv: list[str], group: str, usage: str) -> bool:
    """Whether the first argument is a subcommand that is to run; without one the group's usage is printed."""
    command = argv[0] if argv else "--help"
    if command in ("-h", "--help", "help"):
        print(usage)
        return False
    if command not in SUBCOMMANDS:
        fail(f"unknown command '{group} {command}': {nearest(command, SUBCOMMANDS)}")
    return True
