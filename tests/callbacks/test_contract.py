"""TruncatedBPTT and HiddenNormMonitor in somebody's own module: what breaks the contract is named at the first step."""

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from worldmodel.callbacks import HiddenNormMonitor, TruncatedBPTT
from worldmodel.errors import UserError

LANES, STEPS = 4, 5
QUIET = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "logger"), False)


class Own(pl.LightningModule):
    """A GRU of two layers, which packs its state as the contract asks; `returned` changes what a step returns."""

    def __init__(self, returned=lambda outputs: outputs):
        super().__init__()
        self.rnn = torch.nn.GRU(3, 6, num_layers=2, batch_first=True)
        self.returned, self.starts = returned, []

    def training_step(self, batch, batch_idx, dataloader_idx=0):
        carry = batch.get("carry")
        self.starts.append((dataloader_idx, carry is not None and carry.clone()))
        state = None if carry is None else carry.unflatten(1, (2, 6)).transpose(0, 1).contiguous()
        h, state = self.rnn(batch["x"], state)
        return self.returned({"loss": h.square().mean(), "carry": state.transpose(0, 1).flatten(1), "h": h})

    validation_step = training_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def segments(number=2, seed=0, **entries):
    generator = torch.Generator().manual_seed(seed)
    return [{"x": torch.randn(LANES, STEPS, 3, generator=generator), **entries} for _ in range(number)]


def loader(batches):
    return DataLoader(batches, batch_size=None)


def trainer():
    callbacks = [TruncatedBPTT(), HiddenNormMonitor(every_n_steps=1)]
    return pl.Trainer(accelerator="cpu", max_epochs=1, callbacks=callbacks, num_sanity_val_steps=0, **QUIET)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([(s["x"], s["x"]) for s in segments()], "a batch is a list, .*dict of tensors .*collate_fn"),
        ([{"a": s, "b": s} for s in segments()], "a batch holds no tensor .* 'a', 'b': .*loaders at once"),
        (segments(is_first=torch.zeros(LANES, STEPS)), r"batch\['is_first'\] must be a bool tensor"),
        (segments(is_first=torch.zeros(LANES).bool()), r"batch\['is_first'\] must be a bool tensor"),
        (segments(position=torch.zeros(LANES)), r"batch\['position'\] has 4 entries: it must be one number"),
    ],
    ids=["a tuple", "one level down", "is_first of floats", "is_first of lanes", "a position for each lane"],
)
def test_a_batch_that_breaks_the_contract(batches, message):
    for train, val in ((batches, segments()), (segments(), batches)):
        with pytest.raises(UserError, match=f"^TruncatedBPTT: {message}"):
            trainer().fit(Own(), loader(train), loader(val))


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda outputs: None, r"TruncatedBPTT: the step returned no outputs\['carry'\].*return a dict"),
        (lambda outputs: outputs["loss"], r"TruncatedBPTT: the step returned no outputs\['carry'\].*return a dict"),
        (lambda outputs: outputs | {"carry": None}, r"TruncatedBPTT: the step returned no outputs\['carry'\]"),
        (
            lambda outputs: outputs | {"carry": outputs["carry"].unflatten(1, (2, 6)).transpose(0, 1)},
            r"outputs\['carry'\] of shape \(2, 4, 6\), and batch\['x'\] has 4 lanes: .*\(4, D\).*flatten\(1\)",
        ),
        (lambda outputs: outputs | {"carry": outputs["carry"][:2]}, r"of shape \(2, 12\), and batch\['x'\] has 4"),
        (lambda outputs: outputs | {"carry": outputs["carry"][:, 0]}, r"of shape \(4,\), and batch\['x'\] has 4"),
        (lambda outputs: {n: outputs[n] for n in ("loss", "carry")}, r"HiddenNormMonitor: .*outputs\['h'\]"),
    ],
    ids=["nothing", "a loss", "no state", "layers first", "some lanes", "without D", "no h"],
)
def test_outputs_that_break_the_contract(returned, message):
    module = Own(returned)
    with pytest.raises(UserError, match=message):
        trainer().fit(module, loader(segments()))
    assert len(module.starts) == 1, "reported at the first step"


def test_each_validation_loader_has_its_state():
    alone, module = Own(), Own()
    module.load_state_dict(alone.state_dict())
    trainer().validate(alone, loader(segments(3, seed=2)))
    trainer().validate(module, [loader(segments(2, seed=1)), loader(segments(3, seed=2))])
    assert [index for index, _ in module.starts] == [0, 0, 1, 1, 1]
    assert module.starts[0][1] is module.starts[2][1] is False, "each begins from zeros"
    for (_, carry), (_, expected) in zip(module.starts[3:], alone.starts[1:], strict=True):
        assert torch.equal(carry, expected)
