import torch

from semiseg.models.cells import grid_of, padded_to_cells, to_cells, whole_cells


def test_a_grid_has_no_more_cells_than_the_map_has_values():
    decoded = torch.zeros(1, 4, 20, 3)
    assert grid_of(decoded, (40, 40), 8) == (5, 3)
    assert grid_of(decoded, (41, 41), 8) == (6, 3)


def test_cells_are_means_whatever_the_scale_of_the_map():
    image = torch.arange(64.0).view(1, 1, 8, 8)
    half = torch.nn.functional.avg_pool2d(image, 2)
    expected = torch.nn.functional.avg_pool2d(image, 4)
    for maps in (image, half):
        assert torch.equal(to_cells(maps, (2, 2)), expected)
    assert torch.equal(padded_to_cells(image[..., :6], (8, 8), (2, 2))[..., 0], expected[..., 0])


def test_a_cell_is_valid_if_all_its_pixels_are():
    valid = torch.ones(2, 7, 8, dtype=torch.bool)  # padded to 8x8: the lower cells lose a row
    valid[1, 0, 7] = False
    found = whole_cells(valid, (8, 8), (2, 2))
    assert found.tolist() == [[[True, True], [False, False]], [[True, False], [False, False]]]
