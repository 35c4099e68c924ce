import torch

from semiseg.models.bank import Bank, choose, prototypes
from semiseg.rng import fold_in


def unit(*angles: float) -> torch.Tensor:
    angle = torch.tensor(angles)
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def test_new_representations_replace_the_oldest():
    bank = Bank(num_classes=2, size=3, channels=2)
    for start in (0.1, 0.3):
        bank.add(2 * unit(start, start + 0.1), torch.tensor([[True, True], [False, False]]), fold_in(0, "order"))
    assert bank.count.tolist() == [4, 0]
    assert bank.filled.tolist() == [3, 0]
    bank.add(unit(0.9), torch.tensor([[True], [True]]), fold_in(0, "order"))
    angles = [torch.atan2(*row.flip(1).unbind(1)) for row in bank.key]
    kept = sorted(round(angle, 4) for angle in angles[0].tolist())
    assert kept[-1] == 0.9
    assert set(kept[:2]) == {0.3, 0.4}
    torch.testing.assert_close(bank.key[1, 0], unit(0.9)[0])
    assert not bank.key[1, 1:].any()


def test_a_step_does_not_flood_the_bank():
    bank = Bank(num_classes=2, size=10, channels=1, new=4)
    member = torch.ones(2, 50, dtype=torch.bool)
    member[1, 3:] = False
    bank.add(torch.arange(50.0)[:, None] + 1, member, fold_in(0, "order"))
    assert bank.count.tolist() == [4, 3]
    assert Bank(num_classes=2, size=3, channels=1).new == 3


def test_draws_are_uniform_over_what_a_class_has():
    bank = Bank(num_classes=3, size=5, channels=1)
    bank.key[:] = torch.arange(5.0)[:, None]
    bank.count[:] = torch.tensor([0, 3, 12])
    drawn = bank.draw(torch.rand(3, 100, 30, generator=fold_in(0, "draw")))[..., 0]
    assert not drawn[0].any()
    for row, has in ((1, 3), (2, 5)):
        share = torch.bincount(drawn[row].flatten().long(), minlength=5) / 3000
        assert (share[:has] - 1 / has).abs().max() < 0.04
        assert not share[has:].any()
    assert bank.draw(torch.full((3, 1, 1), 1.0)).flatten().tolist() == [0, 2, 4]  # 1 - 2**-25 rounds to 1


def test_chosen_members_are_random_and_come_first():
    member = torch.rand(2, 40, generator=fold_in(0, "member")) < 0.2
    member[1] = False
    member[1, 7] = True
    index, chosen = choose(member, fold_in(1), 5)
    assert chosen.tolist() == [[True] * 5, [True] + [False] * 4]
    assert member[0, index[0]].all()
    assert index[1, 0] == 7
    assert len(set(index[0].tolist())) == 5
    assert not torch.equal(choose(member, fold_in(2), 5)[0], index)
    assert choose(member, fold_in(1), 100)[0].shape == (2, 40)


def test_prototypes_by_hand():
    key = torch.tensor([[1.0, 0.0], [0.0, 3.0], [5.0, 5.0], [2.0, 1.0]])
    found = prototypes(key, torch.tensor([0, 0, 3, 2]), 3)
    torch.testing.assert_close(found, torch.tensor([[1.0, 3.0], [0.0, 0.0], [2.0, 1.0]]).div(
        torch.tensor([[10.0], [1.0], [5.0]]).sqrt()))  # fmt: skip
