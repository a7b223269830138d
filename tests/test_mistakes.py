"""A mistake that can be seen without data is one clear line before any is collected, and leaves nothing behind."""

import json
from pathlib import Path

import pytest

import worldmodel
from worldmodel.cli import main
from worldmodel.experiments.configs import SECTIONS

MISTAKES = {
    "fit": "a configuration, or data, is missing: give --config quickstart, or --data.path PATH",
    "fit quickstart --trainer.accelerator gpuu": "invalid accelerator name",
    "fit quickstart --trainer.strategy dddp": "invalid strategy name",
    "fit quickstart --trainer.devices -3": "should be an int > 0",
    "fit quickstart --run_dir /proc/x": "/proc/x cannot be made: No such file or directory; choose another folder with",
    "fit quickstart --model.learning_rate fast": "model.learning_rate is 'fast': it must be a number",
    "fit quickstart --trainer.gradient_clip_val x": "trainer.gradient_clip_val is 'x': it must be a number",
    "fit quickstart --data.lanes 3.5": "data.lanes is '3.5': it must be a whole number",
    "fit quickstart --data.collect.steps x": "data.collect.steps is 'x': it must be a whole number",
    "fit quickstart --rollout.multiples x": "rollout.multiples is 'x': it must be a list",
    "fit quickstart --trainer.precision 16-mixd": "did you mean '16-mixed'?",
    "fit quickstart --seed_everything hello": "seed_everything is 'hello': it must be true or false or a whole number",
    "fit quickstart --seed_everything -3": "seed_everything is -3: it must be from 0 to 4294967295",
    "fit quickstart --threads 0": "threads is 0: it must be from 1 to 4096",
    "fit quickstart --trainer.devices 9999999999999999999": "the Trainer refuses its options",
    "fit quickstart --trainer.val_check_interval 0": "trainer.val_check_interval is 0: it must be above 0",
    "fit quickstart --trainer.accumulate_grad_batches 0": "trainer.accumulate_grad_batches is 0: it must be above 0",
    "fit --config .": "is a folder: name a file in it, or a preset (acrobot, ",
    "fit --config text": "text is not a configuration: it must be a mapping of options",
    "fit --config empty": "empty: model holds nothing: indent its options below it, or leave it out",
    "diagnose --config number": "number: trainer holds 5: indent its options below it, or leave it out",
    "fit quickstart --model gru": "--model is a group of options: name the one that is to be 'gru', such as",
    "fit policy/cartpole": "is a configuration of another command: worldmodel policy fit --config",
    "fit pbt/pendulum": "is a configuration of another command: worldmodel pbt --config",
    "policy fit --config quickstart": "is a configuration of another command: worldmodel fit --config",
    "test --config quickstart": "test needs a trained model: give --ckpt_path RUN",
    "compare quickstart --rules residual,gated_nrm --out o": "unknown rule 'gated_nrm': did you mean 'gated_norm'?",
    "compare quickstart --rules gru --seeds a --out o": "--seeds a: 'a' is no whole number",
    "compare quickstart --rules gru --vary model.layers=1,7 --out o": "layers is 7: a cell has 1 or 2 layers",
    "pbt --config pbt/pendulum --population 1": "--population 1: copying takes at least two members",
    "pbt --config pbt/pendulum --mutate model.learning_rate=3": "one value is not a choice",
    "pbt --config quickstart": "pbt needs a number of optimizer steps: set --trainer.max_steps",
    "pbt --config quickstart --trainer.max_steps 100 --interval 33": "--interval 25 does",
}
FILES = {"text": "not options\n", "empty": "model:\n# rule: gru\n", "number": "trainer: 5\ndata: {path: data}\n"}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_reported_before_data_is_collected(words, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(SystemExit) as stop:
        main(words.split())
    output, lines = capfd.readouterr()
    assert stop.value.code == 2 and lines.startswith("worldmodel: error: ") and len(lines.splitlines()) == 1, lines
    assert MISTAKES[words] in lines and "collecting" not in output
    assert {path.name for path in tmp_path.iterdir()} == set(FILES)


def test_every_section_of_a_configuration_is_known():
    pages = json.loads((Path(worldmodel.__file__).parent / "help.json").read_text())
    options = {option.removeprefix("--") for command in ("fit", "policy fit") for option in pages[command]["options"]}
    assert {option.split(".")[0] for option in options if "." in option} == set(SECTIONS)
