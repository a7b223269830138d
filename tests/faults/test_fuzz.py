"""Some of the inputs that fuzz.py changes; CONTRIBUTING says how to try a thousand."""

import pytest
from faults.fuzz import COMMANDS, attempt, make


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    make(folder, list(COMMANDS))
    return folder


@pytest.mark.fault(7)
@pytest.mark.parametrize("kind", [*COMMANDS])
def test_a_changed_input_is_refused_in_one_line_or_does_no_harm(made, tmp_path, often, seen, kind):
    count = often(200, 4)
    ended = [attempt(kind, made, 0, number, tmp_path, seconds=300) for number in range(count)]
    failed = [f"{number}: {case}: {problem}" for number, (case, problem, _) in enumerate(ended) if problem]
    assert not failed
    seen(f"{kind}: {count} changed at random, no traceback, no hang, none silent that has a checksum")
