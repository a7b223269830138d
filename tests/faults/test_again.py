"""A command that was killed, wherever, is simply run again."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from warm import variables

COLLECT = "collect toy_env:Toy-v0 --steps 120 --num_envs 3 --max_episode_steps 20 --policy toy_env:integer_actions"
COLLECT += " --out OUT/data"
COMMANDS = [
    COLLECT,
    f"{COLLECT} && {COLLECT} --append --seed 3",
    "data convert {data} --out OUT/converted",
    f"{COLLECT} --seed 7 && data convert {{data}} --out OUT/data --append",  # none is an episode of the other
    "export --ckpt {run} --out OUT/exported",
    "rollout --ckpt {run} --out OUT/rollout",
]
HELD = {"data": {0: 120, 1: 240, 3: 720}, "converted": {2: 600}}  # folder -> number of the command -> steps


@pytest.mark.fault(20)
def test_a_killed_command_is_run_again(whole, toy_data, tmp_path, often, seen):
    commands = COMMANDS[: often(6, 5)]
    words = [command.format(run=whole, data=toy_data) for command in commands]
    script = Path(__file__).with_name("every_kill.py")
    process = subprocess.run(
        [sys.executable, script, tmp_path, str(often(1, 14)), *words],
        capture_output=True, text=True, env=variables(), cwd=tmp_path,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    rows = [json.loads(line) for line in process.stdout.splitlines()]
    assert {Path(folder).name.split("-")[0] for _, _, folder, _ in rows} == {*map(str, range(len(commands)))}
    for status, said, folder, _ in rows:
        assert status == 0, f"{folder}: {said}"
        number = int(Path(folder).name.split("-")[0])
        for place in Path(folder).iterdir():
            assert not {path.suffix for path in place.rglob("*")} & {".partial", ".unfinished"}
            if place.name in HELD:
                manifest = json.loads((place / "manifest.json").read_text())
                assert manifest["complete"] and "before" not in manifest
                assert manifest["steps"] == HELD[place.name][number]
    seen(f"{len(rows)} kills of {len(commands)} commands: the same command again finishes")
