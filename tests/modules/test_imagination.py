"""Training in imagination: what its gradient reaches, where its rollouts start, what its terms are."""

import numpy as np
import pytest
import torch

from worldmodel import EpisodeDataModule, WorldModel
from worldmodel.agents.imagined_policy import Imagination
from worldmodel.agents.trained import environments, read_trained
from worldmodel.cells.recurrence import previous_states
from worldmodel.cli import main
from worldmodel.envs.collect import CollectOptions, collect
from worldmodel.errors import UserError
from worldmodel.modules.imagination import Imagine

ENVS = {"CartPole-v1": [0, 2], "Pendulum-v1": [0, 1]}
SMALL = {"horizon": 4, "starts": 12, "width": 8, "depth": 1, "episodes": 2}


@pytest.fixture(scope="module", params=ENVS)
def world(request, tmp_path_factory):
    """(the checkpoint of a model with its first weights, its data)."""
    folder = tmp_path_factory.mktemp("world")
    collect(CollectOptions(env_id=request.param, steps=400, observe=ENVS[request.param]), folder / "data")
    data = EpisodeDataModule(folder / "data", steps=6, lanes=3)
    torch.manual_seed(0)
    model = WorldModel(data.obs_dim, data.action_dim, latent_dim=4, hidden_dim=6, width=8)
    for name in ("obs", "action", "reward"):
        getattr(model, f"{name}_norm").fit(*data.statistics[name])
    (folder / "run" / "checkpoints").mkdir(parents=True)
    state = {"hyper_parameters": dict(model.hparams), "state_dict": model.state_dict()}
    torch.save(state | {"EpisodeDataModule": data.state_dict()}, folder / "run" / "checkpoints" / "last.ckpt")
    return folder / "run", data


def batches_of(data, number):
    loader = iter(data.train_dataloader())
    return [next(loader) for _ in range(number)]


def test_the_gradient_reaches_actor_and_critic_and_never_the_world(world):
    torch.manual_seed(0)
    module = Imagine(str(world[0]), **SMALL).train()
    before = {name: tensor.clone() for name, tensor in module.world.state_dict().items()}
    (batch,) = batches_of(world[1], 1)
    terms = {}
    for name, others in (("actor", module.critic), ("critic", module.actor)):
        module.zero_grad()
        z, h, _, _ = module.begin(batch)
        start = z[:, 2], h[:, 2]
        terms = module.losses(module.imagine(*start, 4, torch.Generator().manual_seed(0)))
        terms[name].backward()
        own = module.actor if name == "actor" else module.critic
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in list(own.parameters())[-2:])
        assert all(p.grad is None for p in [*others.parameters(), *module.slow_critic.parameters()])
        assert all(p.grad is None and not p.requires_grad for p in module.world.parameters())
    assert not module.world.training, "also in training"
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.world.state_dict().items())


@pytest.mark.parametrize("world", ["Pendulum-v1"], indirect=True)  # discrete actions: REINFORCE
def test_a_boxs_gradient_is_that_of_the_imagined_return(world):
    """Through the dynamics: the actor's loss falls as finite differences of the returns say; float64."""
    torch.manual_seed(0)
    module = Imagine(str(world[0]), **SMALL, ent_coef=0.0).double().eval()
    module.returns_range.fill_(1.0)
    module.world.heads[-1].bias[1] = 40.0  # every step goes on: how likely a step is reached has no gradient
    z, h = module.world.encode(torch.randn(5, 2).double()), torch.randn(5, 6).double()
    weight = module.actor[-1].weight

    def loss():
        return module.losses(module.imagine(z, h, 4, torch.Generator().manual_seed(1)))["actor"]

    loss().backward()
    with torch.no_grad():
        weight[0, 3] += 1e-6
        up = loss()
        weight[0, 3] -= 2e-6
        assert weight.grad[0, 3] == pytest.approx(float(up - loss()) / 2e-6, rel=1e-4)


def test_terms_by_hand(world):
    """Discount 1/2, lambda 0, a slow critic that says 0: the return is the reward, weighted by how likely it comes."""
    module = Imagine(str(world[0]), **SMALL, discount=0.5, gae_lambda=0.0, ent_coef=0.1).eval()
    for critic in (module.critic, module.slow_critic):
        torch.nn.init.zeros_(critic[-1].weight)
        torch.nn.init.zeros_(critic[-1].bias)
    module.returns_range.fill_(1.0)
    unit = float(module.unit)
    features = torch.randn(2, 4, module.actor[0].in_features)
    reward = torch.tensor([[1.0, 2.0, 4.0], [1.0, 1.0, 1.0]])
    continues = torch.tensor([[0.5, 1.0, 1.0], [1.0, 0.0, 1.0]])
    log_prob, entropy = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), torch.full((2, 3), 0.7)
    terms = module.losses(Imagination(features, reward, continues, log_prob, entropy))
    reach = torch.tensor([[1.0, 0.25, 0.125], [1.0, 0.5, 0.0]])
    gain = reward / unit if module.actions.is_box else log_prob * reward / unit
    assert float(terms["actor"].detach()) == pytest.approx(-float((reach * (gain + 0.07)).mean()), rel=1e-5)
    assert float(terms["critic"].detach()) == pytest.approx(float((reach * (reward / unit) ** 2).mean()), rel=1e-5)
    assert float(terms["return"]) == 1.0


@pytest.mark.parametrize("world", ["Pendulum-v1"], indirect=True)
def test_the_range_of_returns_is_averaged_and_has_a_minimum(world):
    module = Imagine(str(world[0]), **SMALL)
    returns = torch.linspace(0, 1, 101)
    assert module.eval()._range(returns) == pytest.approx(0.01), "nothing is learned in evaluation"
    assert module.train()._range(returns) == pytest.approx(0.9), "from 5% to 95%"
    assert module._range(torch.zeros(101)) == pytest.approx(0.9 * 0.99)


@pytest.mark.parametrize("world", ["Pendulum-v1"], indirect=True)
def test_a_box_s_actions_scatter_within_limits(world):
    module = Imagine(str(world[0]), **SMALL)
    for bias, log_std in ((-1e3, -3.0), (1e3, 0.0)):
        torch.nn.init.constant_(module.actor[-1].bias, bias)
        distribution = module.distribution(torch.zeros(2, module.actor[0].in_features))
        assert distribution.log_std.tolist() == [[log_std]] * 2


def test_rollouts_start_from_states_of_real_frames_with_the_state_carried(world):
    module = Imagine(str(world[0]), **SMALL).eval()
    first, second = batches_of(world[1], 2)
    *_, carry = module.begin(first)
    second["carry"] = carry
    z, before, h, _ = module.begin(second)
    expected, states, _ = module.world.observe(second["obs"][:, :-1], second["action"], second["is_first"], carry)
    assert torch.equal(z, expected) and torch.equal(before, previous_states(states, second["is_first"], carry))
    assert torch.equal(before[~second["is_first"][:, 0], 0], carry[~second["is_first"][:, 0], : before.shape[-1]])
    second["valid"][:] = False
    second["valid"][1, 3] = True
    from_z, from_h, _ = module._starts(second, z, before)
    assert (from_z == z[1, 3]).all() and (from_h == before[1, 3]).all() and len(from_z) == 12


@pytest.mark.parametrize("world", ["Pendulum-v1"], indirect=True)
def test_fit_test_and_plan_and_the_checkpoint_needs_no_world(world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLDMODEL_RUN_DIR", "")
    run, data = world
    given = ["--data.path", data.path, "--data.steps", "6", "--data.lanes", "3", "--model.world", run]
    given += [word for name, value in SMALL.items() for word in (f"--model.{name}", value)]
    given += ["--trainer.max_steps", "3", "--trainer.accelerator", "cpu", "--wandb", "disabled", "--threads", "1"]
    main(["imagine", "fit", *map(str, given), "--run_dir", "fit"])
    printed = capsys.readouterr().out
    assert "validation: mean return" in printed and printed.splitlines()[-1] == "run: fit"
    main(["imagine", "test", *map(str, given), "--run_dir", "test", "--ckpt_path", "fit"])
    tested = capsys.readouterr().out
    assert "test: mean return" in tested and "over 2 episodes" in tested
    moved = run.rename(run.with_name("moved"))
    try:
        trained = read_trained(tmp_path / "fit" / "checkpoints" / "last.ckpt")
        with pytest.raises(UserError, match="no checkpoint at"):
            Imagine(str(run))
        main(["plan", "--ckpt", "fit", "--episodes", "2", "--no_film", "--seed", "2000", "--out", "plan"])
    finally:
        moved.rename(run)
    with open("plan/episodes.csv") as file:
        rows = [line.split(",") for line in file.read().splitlines()[1:]]
    assert [row[0] for row in rows] == ["actor"] * 2 + ["random"] * 2
    assert f"{np.mean([float(row[2]) for row in rows[:2]]):.4g}" in tested, "plan plays what test played"
    simulator, observed = environments(trained, trained.env_id, 1)
    simulator.envs.close()
    assert observed.entries == ENVS[trained.env_id]


@pytest.mark.parametrize("world", ["Pendulum-v1"], indirect=True)
def test_mistakes(world, capsys):
    with pytest.raises(SystemExit):
        main(["imagine", "fitt"])
    assert "unknown command 'imagine fitt': did you mean 'fit'?" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"model.horizon is 0: it must be at least 1"):
        Imagine(str(world[0]), horizon=0)
    with pytest.raises(UserError, match=r"model.discount is 1.0"):
        Imagine(str(world[0]), discount=1.0)
