"""`worldmodel play` in a real browser: beside a simulator, and as a file without a network."""

import json
import re
import signal
import socket
import time
import urllib.error
import urllib.request

import pytest
import torch
import warm
from commands.test_plan import save_run
from conftest import one_line
from playwright.sync_api import expect

from worldmodel.agents.trained import read_trained
from worldmodel.cli import main
from worldmodel.modules.of_run import data_of, split_of
from worldmodel.page.document import document
from worldmodel.runs.files import find_checkpoint


@pytest.fixture(scope="module")
def run(tmp_path_factory, pendulum_data):
    return save_run(tmp_path_factory.mktemp("play") / "run", pendulum_data)


@pytest.fixture(scope="module")
def written(run, tmp_path_factory):
    """The page as a file."""
    path = tmp_path_factory.mktemp("page") / "page.html"
    main(["play", str(run), "--out", str(path)])
    return path


@pytest.fixture(scope="module")
def served(run, tmp_path_factory):
    """A running program and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = warm.start(["play", run, "--port", str(port)], tmp_path_factory.mktemp("served"))
    while process.poll() is None:
        try:  # it listens at once, and answers when the page is made
            urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=60).close()
            break
        except OSError:
            time.sleep(0.1)
    yield process, f"http://127.0.0.1:{port}"
    process.kill()


def ahead(page) -> int:
    return int(page.locator("body").get_attribute("data-ahead"))


def until(page, condition: str) -> None:
    """Wait for a condition; Playwright's own way to wait is eval, which the page's policy forbids."""
    end = time.monotonic() + 30
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(20)


def dreams_on(page, steps: int) -> None:
    """Wait for so many further steps of a dream."""
    until(page, f"Number(document.body.dataset.ahead) > {ahead(page) + steps}")


def asked(url: str, question=None, **headers) -> tuple[int, str]:
    """The status and text of an answer."""
    data = None if question is None else json.dumps(question).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_keys_drive_the_dream_beside_the_simulator(served, opened):
    with opened(served[1]) as page:
        expect(page.locator("#status")).to_contain_text("sees nothing")
        page.keyboard.down("ArrowRight")
        expect(page.locator("#controls output")).to_have_text("2.00")
        dreams_on(page, 20)
        assert float(page.locator("body").get_attribute("data-error")) >= 0, "the truth goes on beside the dream"
        page.keyboard.up("ArrowRight")
        expect(page.locator("#controls output")).to_have_text("0.00")
        page.keyboard.press("Space")
        expect(page.locator("#pause")).to_contain_text("Go on")
        page.keyboard.press("Space")
        before = ahead(page)
        page.keyboard.press("Enter")
        until(page, f"Number(document.body.dataset.ahead) < {before}")
        page.locator("#controls input").fill("-1.5")
        expect(page.locator("#controls output")).to_have_text("-1.50")


def test_awake_the_page_remembers_what_the_model_does(written, run, opened):
    """The errors of its awake steps on a recording are those of the model's own closed loop."""
    checkpoint = find_checkpoint(run)
    model, data = read_trained(checkpoint).model, data_of(checkpoint)
    data.prepare_data()
    episodes = split_of(data, None)[1]
    episode = int(episodes.num_frames.argmax())
    rows = episodes.rows(episode)[:5]
    obs, action = (torch.from_numpy(x(rows)).unsqueeze(0) for x in (episodes.obs, episodes.action))
    expected = model.closed_loop(obs, action, torch.arange(5).unsqueeze(0) == 0)[0][0, :4]
    error = (((expected - obs[0, 1:]) / model.obs_norm.scale).square().mean(dim=-1)).tolist()
    with opened(written) as page:
        script = """(steps) => {
            const data = JSON.parse(document.getElementById("data").textContent), dream = new Dream(data);
            const truth = new RecordedTruth(data.recordings, data.error_weights.length, data.controls.low.length);
            return Array.from({ length: steps }, (_, t) => {
                dream.see(truth.episode.obs(t));
                return dream.error(dream.act(truth.episode.action(t), false).obs, truth.episode.obs(t + 1));
            });
        }"""
        assert page.evaluate(script, 4) == pytest.approx(error, rel=1e-3)


def test_everything_is_drawn(served, opened):
    with opened(served[1]) as page:
        until(page, "Number(document.body.dataset.ahead) > 3")
        colours = "(c) => new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size"
        drawn = page.evaluate(f"[...document.querySelectorAll('canvas')].map({colours})")
        assert len(drawn) == 5 and min(drawn) > 10, "the picture, two entries, the error and the norm"
        assert page.locator("canvas[aria-label^='cos of the angle']").count() == 1


def test_only_its_own_page_may_ask(served):
    url = served[1]
    port = url.rpartition(":")[2]
    assert asked(url + "/reset", {"seed": 1})[0] == 200
    assert asked(url + "/reset", {"seed": 1}, Host=f"localhost:{port}", Origin=f"http://localhost:{port}")[0] == 200
    assert asked(url, Host="rebound.example")[0] == 403
    assert asked(url, Host=f"rebound.example:{port}")[0] == 403
    assert asked(url + "/reset", {"seed": 1}, Origin="http://other.example") == (403, "another site may not ask")
    assert asked(url + "/reset", {"seed": 1}, Origin="null")[0] == 403
    assert asked(url + "/reset", {"seed": 1}, **{"Content-Type": "text/plain"})[0] == 400
    assert asked(url + "/step", {"action": [1.0, 2.0]}) == (400, "an action has 1 finite numbers")
    assert asked(url + "/step", {"action": ["1"]})[0] == asked(url + "/step", [1])[0] == 400
    assert asked(url + "/../config.yaml")[0] == asked(url + "/ask", {})[0] == 404


def test_the_truth_is_the_simulators(served):
    import gymnasium as gym

    env = gym.make("Pendulum-v1")
    truth, _ = env.reset(seed=7)
    frame = json.loads(asked(served[1] + "/reset", {"seed": 7})[1])
    for action in (2.0, -1.0, 9.0):  # beyond the bounds it is clipped
        assert frame["vectors"] == pytest.approx(truth[:2].tolist(), abs=1e-6) and not frame["over"]
        truth, *_ = env.step([min(action, 2.0)])
        frame = json.loads(asked(served[1] + "/step", {"action": [action]})[1])


def test_ends_when_asked(served):
    process, url = served
    assert asked(url)[0] == 200
    process.send_signal(signal.SIGINT)
    ended = process.end(30)
    assert ended.returncode == 130 and ended.stderr.strip() == "worldmodel: interrupted"
    assert f"play: {url}" in ended.stdout


def test_a_file_dreams_without_a_network(written, opened):
    with opened(written) as page:
        expect(page.locator("#status")).to_contain_text("recorded actions alone")
        until(page, "Number(document.body.dataset.ahead) > 3 && Number(document.body.dataset.error) >= 0")
        page.keyboard.down("ArrowLeft")
        expect(page.locator("#status")).to_contain_text("the truth ends here")
        expect(page.locator("#controls output")).to_have_text("-2.00")
        dreams_on(page, 20)
        page.keyboard.up("ArrowLeft")
        page.locator("#episode").select_option("1")
        expect(page.locator("#status")).to_contain_text("recorded actions alone")


def test_names_of_strangers_are_text(written, opened, tmp_path):
    text = written.read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', text).group(1))
    name = "</script><img src=x onerror=alert(1)>{{DATA}}"
    (tmp_path / "page.html").write_text(document(data | {"environment": name, "entries": [name, name]}))
    with opened(tmp_path / "page.html") as page:
        expect(page.locator("h1")).to_contain_text(name)
        until(page, "Number(document.body.dataset.ahead) > 3")


def test_mistakes_are_one_line(worldmodel, run, written, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"port {port} is taken: choose another with --port" in one_line(worldmodel("play", run, "--port", port))
    assert "no checkpoint at nowhere" in one_line(worldmodel("play", "nowhere"))
    assert "needs a trained model" in one_line(worldmodel("play"))
    assert "exists: choose a new --out" in one_line(worldmodel("play", run, "--out", written))
    assert "does not fit" in one_line(worldmodel("play", run, "--env", "CartPole-v1", "--port", "0"))
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    checkpoint["hyper_parameters"]["objective"] = "tokens"
    torch.save(checkpoint, tmp_path / "tokens.ckpt")
    assert "predicts tokens" in one_line(worldmodel("play", "tokens.ckpt", "--port", "0"))
    del checkpoint["EpisodeDataModule"]
    checkpoint["hyper_parameters"] = {"latent_dim": 4}
    torch.save(checkpoint, tmp_path / "policy.ckpt")
    assert "worldmodel" in one_line(worldmodel("play", "policy.ckpt", "--port", "0"))
