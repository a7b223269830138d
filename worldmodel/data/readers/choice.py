"""What a user chooses among the names of a dataset: one meaning for every format."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from worldmodel.data.episode import Episode, Source
from worldmodel.errors import UserError, nearest

Names = Sequence[str] | str | None  # names, or text with commas between them


@dataclass(frozen=True)
class Choice:
    """Names as `worldmodel data info` lists them, or as the files hold them; what is empty is found by its usual name.

    `observations` and `skip` name keys one by one, by a pattern (`images.*`) or by the group that they are in.
    """

    observations: tuple[str, ...] = ()  # keys to read, in this order
    skip: tuple[str, ...] = ()  # keys to leave out, whose files are not opened
    action: tuple[str, ...] = ()  # what makes up the action, side by side
    reward: str | None = None
    rename: dict[str, str] = field(default_factory=dict)  # key -> what it is called from here on

    def __bool__(self) -> bool:
        return self != Choice()

    def keys(self, usual: Mapping[str, str], where: object, others: Mapping[str, str] | None = None) -> list[str]:
        """The keys to read.

        Args:
            usual: key -> name in the file, of what is read without a choice.
            where: of the dataset, for error messages.
            others: the same, of what can be read besides.

        Raises:
            UserError: naming what is not there, or if nothing is left.
        """
        every = {**(others or {}), **usual}

        def found(names: tuple[str, ...], option: str) -> list[str]:
            picked: list[str] = []
            for name in names:
                if not (hits := [key for key, stored in every.items() if _is_meant(name, key, stored)]):
                    raise UserError(f"{where}: there is no observation {name!r} to {option}; {nearest(name, every)}")
                picked += hits
            return list(dict.fromkeys(picked))

        keys, left = found(self.observations, "read") or list(usual), set(found(self.skip, "skip"))
        if keys and left.issuperset(keys):
            raise UserError(f"{where}: no observation is left once {', '.join(self.skip)} is skipped")
        return [key for key in keys if key not in left]


def choice_of(
    observations: Names, skip: Names, action: Names, reward: str | None, rename: dict[str, str] | str | None
) -> Choice:
    """A choice as users write it: lists, or text with commas; a UserError if a name is empty or is not renamed."""

    def names(raw: Names, option: str) -> tuple[str, ...]:
        found = raw.split(",") if isinstance(raw, str) else raw or ()
        if not isinstance(found, list | tuple) or not all(isinstance(name, str) and name.strip() for name in found):
            raise UserError(f"{option} must be names with commas between them, not {raw!r}")
        return tuple(name.strip() for name in found)

    pairs = rename or {}
    if isinstance(pairs, str):
        halves = [pair.partition("=") for pair in names(pairs, "rename")]
        if not all(old and new for old, _, new in halves):
            raise UserError(f"rename must be OLD=NEW, or several with commas between them, not {rename!r}")
        pairs = {old.strip(): new.strip() for old, _, new in halves}
    return Choice(
        names(observations, "observations"), names(skip, "skip"), names(action, "action"), reward, dict(pairs)
    )


def picked(source: Source, choice: Choice) -> Source:
    """The source with the chosen keys alone."""
    keys = choice.keys({key: key for key in source.observation_space}, source.path)
    return _with_keys(source, {key: key for key in keys})


def renamed(source: Source, names: dict[str, str]) -> Source:
    """The source with other names for some of its keys; a UserError if a key is unknown, or two would be one."""
    keys = list(source.observation_space)
    for key in names:
        if key not in keys:
            raise UserError(f"{source.path}: {key!r}, to be renamed, is no key; {nearest(key, keys)}")
    new = {key: names.get(key, key) for key in keys}
    if len(set(new.values())) < len(new):
        twice = next(name for name in new.values() if list(new.values()).count(name) > 1)
        raise UserError(f"{source.path}: two keys would be called {twice!r}: rename them to different names")
    return _with_keys(source, new)


def _with_keys(source: Source, names: dict[str, str]) -> Source:
    """The source with these keys, old name -> new one."""

    def episodes() -> Iterator[tuple[str, Episode]]:
        for where, episode in source.episodes():
            observed = {new: episode.observations[old] for old, new in names.items()}
            yield where, replace(episode, observations=observed)

    space = {new: source.observation_space[old] for old, new in names.items()}
    return replace(source, observation_space=space, episodes=episodes)


def _is_meant(name: str, *keys: str) -> bool:
    """Whether a name stands for a key: the same, a pattern of it, or the group that it is in."""
    return any(key == name or fnmatchcase(key, name) or key.startswith((f"{name}/", f"{name}.")) for key in keys)
