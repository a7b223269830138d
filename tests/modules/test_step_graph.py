"""What a graph of the step would do wrong is refused; what it does right is in tests/gpu."""

import pytest
import torch

from worldmodel.errors import UserError
from worldmodel.modules.step_graph import check_can_capture

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
FITS = {"gradient": "tbptt", "objective": "latent", "anti_collapse": "variance_covariance"}


def test_what_a_graph_can_hold_begins():
    check_can_capture(FITS, "bf16-mixed", 1, GPU)
    check_can_capture(FITS | {"objective": "reconstruction", "anti_collapse": "sigreg"}, "32-true", 4, GPU)


@pytest.mark.parametrize(
    ("hparams", "precision", "ranks", "device", "said"),
    [
        ({}, "32-true", 1, CPU, "this run is on the CPU"),
        ({"gradient": "rtrl"}, "32-true", 1, GPU, "does not work with model.gradient rtrl"),
        ({"gradient": "eligibility"}, "32-true", 1, GPU, "does not work with model.gradient eligibility"),
        ({"anti_collapse": "sigreg"}, "32-true", 1, GPU, "does not work with model.anti_collapse sigreg"),
        ({}, "32-true", 2, GPU, "does not work with model.objective latent on several ranks"),
        ({}, "16-mixed", 1, GPU, "does not work with trainer.precision 16-mixed"),
    ],
)
def test_what_it_cannot_is_refused(hparams, precision, ranks, device, said):
    with pytest.raises(UserError, match=said):
        check_can_capture(FITS | hparams, precision, ranks, device)
