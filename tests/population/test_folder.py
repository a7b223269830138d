"""Who copied whom: a population of three, by hand."""

import csv

import pytest

from worldmodel.callbacks.exchange import Report
from worldmodel.errors import UserError
from worldmodel.population.design import Population
from worldmodel.population.folder import Board, Exploit, Lineage, begin
from worldmodel.population.report import population_figure

HEADER = "step,member,score,model.learning_rate\n"
RATE = "model.learning_rate"


@pytest.fixture
def lineage():
    made = Lineage()
    for step, member, score, rate in [
        (20, 1, 0.3, 0.01), (10, 0, 1.0, 0.1), (10, 1, 0.5, 0.01), (10, 2, 2.0, 1.0), (20, 0, 0.9, 0.1),
        (20, 2, 0.6, 0.012), (30, 0, 0.2, 0.008),
    ]:  # fmt: skip
        made.report(member, Report(step, score, {RATE: rate}))
    made.exploit(Exploit(20, 0, 2, 0.9, 0.6, {RATE: 0.1}, {RATE: 0.008}))
    made.exploit(Exploit(10, 2, 1, 2.0, 0.5, {RATE: 1.0}, {RATE: 0.012}))
    return made


def test_weights_are_followed_back_to_where_they_came_from(lineage):
    assert [(e.step, e.donor) for e in lineage.ancestors(0)] == [(20, 2), (10, 1)]
    assert [(e.step, e.donor) for e in lineage.ancestors(2)] == [(10, 1)]
    assert lineage.ancestors(1) == []
    assert {member: report.step for member, report in lineage.last().items()} == {0: 30, 1: 20, 2: 20}


def test_files_hold_it_and_what_comes_again_stands_once(lineage, tmp_path):
    lineage.report(1, Report(20, 0.3, {RATE: 0.01}))
    lineage.exploit(Exploit(10, 2, 1, 2.0, 0.5, {RATE: 1.0}, {RATE: 0.012}))
    lineage.write(tmp_path)
    assert Lineage.read(tmp_path).reports == lineage.reports and len(lineage.reports) == 7
    assert list(lineage.reports)[:4] == [(10, 0), (10, 1), (10, 2), (20, 0)], "by step, then member"
    rows = list(csv.DictReader((tmp_path / "lineage.csv").open()))
    assert [(row["step"], row["member"], row["donor"]) for row in rows] == [("10", "2", "1"), ("20", "0", "2")]
    assert (rows[0][f"{RATE} before"], rows[0][f"{RATE} after"], rows[0]["donor_score"]) == ("1.0", "0.012", "0.5")


def test_an_empty_folder_holds_nothing(tmp_path):
    Lineage().write(tmp_path)
    assert Lineage.read(tmp_path).reports == {} and Board(tmp_path).all() == []


def test_decisions_are_found_again(lineage, tmp_path):
    board = Board(tmp_path)
    assert board.read(10) is None and board.last() == 0
    board.publish(20, [lineage.exploits[1]])
    board.publish(10, [lineage.exploits[0]])
    board.publish(100, [])
    assert board.read(100) == [] and board.wait(20) == [lineage.exploits[1]]
    assert board.all() == lineage.exploits, "in the order of the steps, as numbers"
    assert board.last() == 100


def test_the_picture_has_a_panel_a_hyperparameter_and_an_arrow_an_exploit_in_each(lineage):
    figure = population_figure(lineage, "val/loss", "three", frozenset({RATE}))
    score, rate = figure.axes
    assert (score.get_ylabel(), rate.get_ylabel()) == ("val/loss", RATE)
    assert (score.get_yscale(), rate.get_yscale()) == ("linear", "log")
    assert len(score.texts) == len(rate.texts) == 2
    assert [text.xy for text in rate.texts] == [(10, 0.012), (20, 0.008)], "to what the copy goes on with"


@pytest.mark.fault(23)
def test_a_population_killed_as_it_began_goes_on_and_a_damaged_one_is_named(lineage, tmp_path, seen):
    population = Population(
        *(tmp_path, "model:\n  width: 1\n", {}, "world_model", "data", 2, 1, 2, [], [], [{}, {}]),
        *(0.25, "val/loss", "min", 0, 0, 1, 0, 2),
    )
    begin(population)
    (tmp_path / "config.yaml").unlink()
    assert not begin(population).reports and (tmp_path / "config.yaml").is_file()
    lineage.write(tmp_path)
    Board(tmp_path).publish(10, lineage.exploits[:1])
    Board(tmp_path).publish(20, lineage.exploits[1:])
    for name in ("decisions/20.json", "population.csv", "config.yaml", "population.json"):
        path = tmp_path / name
        whole = path.read_bytes()
        digit = max(whole.rfind(b"1"), whole.rfind(b"2"))
        flipped = bytes([*whole[:digit], whole[digit] ^ 1, *whole[digit + 1 :]])  # another number, of the same form
        for content in (b"{", b"", whole[:-9], flipped):
            path.write_bytes(content)
            with pytest.raises(UserError, match=f"{path} is damaged .*: restore it from a copy, or choose another"):
                begin(population)
        path.write_bytes(whole)
    assert begin(population).exploits == lineage.exploits
    seen("a population's 4, damaged in 4 ways each: named, with what to do")
