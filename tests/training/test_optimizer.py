import pytest
import torch

from training import optimizer
from training.optimizer import BatchedMuon, Muon, orthogonal

SHAPES = [(48, 48), (32, 96), (96, 32), (48, 48), (32, 96)]


def trained(kind: type[torch.optim.Muon], steps: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    muon = kind(parameters, lr=0.02, weight_decay=0.05, momentum=0.95)
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        muon.step()
    return [parameter.detach() for parameter in parameters]


def test_muon_is_torchs_own_where_bf16_is_fast(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(optimizer, "bf16_is_fast", lambda: True)
    assert all(map(torch.equal, trained(Muon), trained(torch.optim.Muon)))


def test_muon_without_bf16_is_torchs_own_up_to_rounding(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(optimizer, "bf16_is_fast", lambda: False)
    start = trained(torch.optim.Muon, steps=0)
    for ours, theirs, before in zip(trained(Muon), trained(torch.optim.Muon), start, strict=True):
        assert (ours - theirs).norm() < 0.02 * (theirs - before).norm()


@pytest.mark.parametrize("bf16", [True, False])
def test_all_matrices_of_a_shape_at_once_is_muon_up_to_rounding(monkeypatch: pytest.MonkeyPatch, bf16: bool):
    monkeypatch.setattr(optimizer, "bf16_is_fast", lambda: bf16)
    start = trained(Muon, steps=0)
    for batched, single, before in zip(trained(BatchedMuon), trained(Muon), start, strict=True):
        assert (batched - single).norm() < (0.05 if bf16 else 1e-5) * (single - before).norm()


def test_a_run_may_go_on_where_bf16_is_not_fast(monkeypatch: pytest.MonkeyPatch):
    moved = []
    for speeds in ((True, True), (True, False)):
        weights = torch.nn.Parameter(torch.zeros(16, 16))
        muon = Muon([weights], lr=0.02)
        generator = torch.Generator().manual_seed(1)
        for fast in speeds:
            monkeypatch.setattr(optimizer, "bf16_is_fast", lambda fast=fast: fast)
            weights.grad = torch.randn(16, 16, generator=generator)
            muon.step()
        moved.append(weights.detach())
    assert (moved[1] - moved[0]).norm() < 0.02 * moved[0].norm()


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_orthogonal_keeps_the_directions_and_evens_the_singular_values(shape: tuple[int, int]):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    made = orthogonal(matrix, (3.4445, -4.7750, 2.0315), 5)
    values = u.T @ made @ v.T
    assert torch.allclose(values, torch.diag(values.diagonal()), atol=1e-4)
    # Jordan et al. 2024: between about 0.7 and 1.2, except for what was nearly zero before.
    assert ((values.diagonal()[: min(shape) // 2] > 0.6) & (values.diagonal()[: min(shape) // 2] < 1.3)).all()
