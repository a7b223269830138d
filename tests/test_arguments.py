"""What a wrong option or key is answered with; and the names that the outside imports."""

import subprocess
import sys

import pytest

from worldmodel import arguments
from worldmodel.arguments import explain
from worldmodel.errors import UserError, at_least

OPTIONS = ["--data.lanes", "--data.steps", "--model.learning_rate", "--tbptt.stale_state", "--data.seed"]
KEY = "Validation failed: Group \"x\" does not accept option '{}'"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("unrecognized arguments: --batch_size 3", "unknown option --batch_size: it is called --data.lanes"),
        ("unrecognized arguments: --data.seq_len=3", "unknown option --data.seq_len: it is called --data.steps"),
        (KEY.format("model.lr"), "unknown key 'model.lr': it is called 'model.learning_rate'"),
        (KEY.format("data.lane"), "unknown key 'data.lane': did you mean 'data.lanes'?"),
        (
            "unrecognized arguments: --tbptt.on_weight_change=keep",
            "unknown option --tbptt.on_weight_change: it is called --tbptt.stale_state",
        ),
        ("something\n  else", "something else"),
    ],
)
def test_a_name_that_was_renamed_or_is_another_program_s_is_translated(message, expected):
    assert explain(message, OPTIONS) == expected


def test_a_name_that_this_command_lacks_is_not_offered(monkeypatch):
    monkeypatch.setitem(arguments.RENAMED, "data.max_kl", "data.target_kl")
    message = explain("unrecognized arguments: --data.max_kl=3", OPTIONS)
    assert message.startswith("unknown option --data.max_kl: did you mean")
    assert "called --data.target_kl" in explain("unrecognized arguments: --data.max_kl=3", ["--data.target_kl"])


def test_a_number_that_is_too_small_is_named():
    at_least(1, "data.", steps=1, lanes=None)
    with pytest.raises(UserError, match=r"^data\.lanes is 0: it must be at least 1$"):
        at_least(1, "data.", steps=3, lanes=0)
    with pytest.raises(UserError, match=r"^--rate is nan: it must be at least 0$"):
        at_least(0, "--", rate=float("nan"))


def test_the_names_that_the_outside_imports_come_without_the_rest():
    program = """
import sys
import worldmodel, worldmodel.callbacks
assert not {"torch", "lightning"} & sys.modules.keys()
from worldmodel import RULES, EpisodeDataModule, LatentPredictor, WorldModel
from worldmodel.callbacks import HiddenNormMonitor, RolloutEvaluation, TruncatedBPTT
from worldmodel.callbacks.hidden_norm import HiddenNormMonitor as same
from worldmodel.callbacks.tbptt import TruncatedBPTT as carries
assert same is HiddenNormMonitor and carries is TruncatedBPTT
for module in worldmodel, worldmodel.callbacks:
    assert all(hasattr(module, name) for name in module.__all__)
    assert not hasattr(module, "no_such_name")
"""
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
