from contextlib import suppress

import torch
from hypothesis import given
from hypothesis import strategies as st

from semiseg.rng import fold_in, folded_seed, seed_global, seeded, uniform
from semiseg.types import Progress

places = st.lists(st.integers(0, 10**9) | st.text(max_size=5), max_size=4)


def draw(generator: torch.Generator) -> list[float]:
    return torch.rand(4, generator=generator).tolist()


def test_seeds_never_change():
    """Other values would make resumed runs those of another program. These are b2sum's, halved."""
    assert folded_seed(0) == 7_210_762_507_766_007_076
    assert folded_seed(1, "strong", 0, 7, 0) == 6_556_098_900_825_528_866


@given(st.integers(0, 2**40), places)
def test_a_seed_is_a_function_of_its_place(seed, where):
    folded = folded_seed(seed, *where)
    assert 0 <= folded < 2**63
    assert folded == folded_seed(seed, *where)
    assert draw(fold_in(seed, *where)) == draw(fold_in(seed, *where))


@given(st.integers(0, 100), st.integers(0, 100), places, places)
def test_every_element_of_a_place_counts_in_its_order(seed, other, where, elsewhere):
    if (seed, where) != (other, elsewhere):
        assert folded_seed(seed, *where) != folded_seed(other, *elsewhere)


def test_places_that_look_alike():
    alike = [(1, 23), (12, 3), (123,), ("1", 23), (1, "23"), ("1, 23",), (23, 1), ("a", "bc"), ("ab", "c"), ()]
    assert len({folded_seed(0, *where) for where in alike}) == len(alike)
    assert folded_seed(0, 1) != folded_seed(1, 0)
    assert folded_seed(0, 0) != folded_seed(0)


def test_neighboring_steps_have_nothing_in_common():
    draws = torch.stack([torch.rand(500, generator=fold_in(0, "step", step)) for step in range(20)])
    off_diagonal = torch.corrcoef(draws) - torch.eye(20)
    assert off_diagonal.abs().max() < 0.25


def test_one_generator_leaves_others_alone():
    alone = draw(fold_in(0, 7))
    for step in range(7):
        draw(fold_in(0, step))
    assert draw(fold_in(0, 7)) == alone
    state = torch.get_rng_state()
    draw(fold_in(0, 8))
    assert torch.equal(torch.get_rng_state(), state)


@given(st.integers(0, 10_000), st.floats(-10, 10), st.floats(0, 10))
def test_uniform_draws_lie_in_their_range(seed, low, width):
    drawn = uniform(fold_in(seed), low, low + width, 3, 5)
    assert drawn.shape == (3, 5)
    assert drawn.min() >= low - 1e-5
    assert drawn.max() <= low + width + 1e-5


def test_uniform_draws_fill_their_range():
    drawn = uniform(fold_in(0), -1.0, 3.0, 4000)
    assert drawn.min() < -0.98
    assert drawn.max() > 2.98
    assert abs(drawn.mean() - 1) < 0.08
    assert uniform(fold_in(0), 0.0, 1.0).shape == ()


def test_seeded_library_code_is_a_function_of_its_place_and_leaves_no_trace():
    state = torch.get_rng_state()
    drawn = {}
    for where in (("model",), ("model",), ("other",)):
        with seeded(0, *where):
            drawn.setdefault(where, []).append(torch.nn.Linear(2, 2).weight.flatten().tolist())
    assert drawn["model",][0] == drawn["model",][1]
    assert drawn["model",][0] != drawn["other",][0]
    assert torch.equal(torch.get_rng_state(), state)


def test_seeded_code_within_seeded_code_leaves_no_trace_there():
    def drawn(inner: bool, fails: bool = False) -> list[float]:
        with seeded(0, "outer"):
            before = torch.rand(())
            with suppress(KeyError):
                if inner:
                    with seeded(0, "inner"):
                        torch.rand(9)
                        if fails:
                            raise KeyError
            return [before.item(), torch.rand(()).item()]

    assert drawn(inner=True) == drawn(inner=True, fails=True) == drawn(inner=False)


def test_seed_global_seeds_what_dropout_draws_from():
    with torch.random.fork_rng():
        seed_global(0, "step", 3)
        one = torch.nn.functional.dropout(torch.ones(50))
        seed_global(0, "step", 3)
        assert torch.equal(torch.nn.functional.dropout(torch.ones(50)), one)
        seed_global(0, "step", 4)
        assert not torch.equal(torch.nn.functional.dropout(torch.ones(50)), one)


def test_progress_hands_out_the_generators_of_its_step():
    at = Progress(7, 100, seed=3)
    assert draw(at.generator("cutmix")) == draw(fold_in(3, "cutmix", 7))
    others = [Progress(8, 100, 3), Progress(7, 100, 4)]
    assert all(draw(other.generator("cutmix")) != draw(at.generator("cutmix")) for other in others)
    assert draw(at.generator("other")) != draw(at.generator("cutmix"))
    assert draw(Progress(7, 50, 3).generator("cutmix")) == draw(at.generator("cutmix"))  # not of the run's length
