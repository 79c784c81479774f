"""Patches: which size is chosen, which pixels a token holds, what is said when nothing divides."""

import pytest
import torch

from nested.errors import UserError
from nested.layers.patches import Patches, check_patch, cut, default_patch


@pytest.mark.parametrize(
    ("shape", "patch"),
    [
        ((8, 8), 2), ((28, 28), 7), ((1, 28, 28), 7), ((3, 32, 32), 8), ((105, 105), 21), ((3, 3), 1), ((13, 13), 1),
        ((8, 28), 2), ((64,), 4), ((784,), 49), ((10,), 1), ((3, 64, 64), 16),
    ],
)  # fmt: skip
def test_default_patch(shape: tuple[int, ...], patch: int):
    assert default_patch(shape) == patch


@pytest.mark.parametrize("shape", [(997,), (29, 29), (1, 37, 37)])
def test_a_size_that_would_make_too_many_tokens_is_refused(shape: tuple[int, ...]):
    with pytest.raises(UserError, match=r"tokens; pad or resize the samples, or choose one of \[1, ") as error:
        default_patch(shape)
    assert error.value.key == "model.patch"


def test_a_patch_that_does_not_divide_is_refused_with_what_does():
    with pytest.raises(UserError, match=r"a patch of 3 does not divide .*what divides: \[1, 2, 4, 8\]"):
        check_patch((8, 8), 3)
    with pytest.raises(UserError, match=r"what divides: \[1, 2, 5, 10\]"):
        check_patch((10,), 4)


def test_cut_keeps_each_patch_together():
    image = torch.arange(16.0).view(1, 4, 4)
    assert cut(image, 2)[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert torch.equal(cut(image.unsqueeze(1), 2), cut(image, 2))
    colours = torch.stack([image, image + 100], dim=1)  # (1, 2, 4, 4)
    assert cut(colours, 2)[0, 1].tolist() == [2, 3, 6, 7, 102, 103, 106, 107]
    assert cut(torch.arange(6.0).view(1, 6), 3).tolist() == [[[0, 1, 2], [3, 4, 5]]]


def test_positions_make_equal_patches_distinct():
    layer = Patches((4, 4), 2, width=3)
    tokens = layer(torch.ones(1, 4, 4))
    assert tokens.shape == (1, 4, 3)
    content = tokens[0] - layer.position
    torch.testing.assert_close(content, content[:1].expand(4, 3))
    assert not torch.equal(tokens[0, 0], tokens[0, 1])


def test_samples_of_four_dimensions_are_refused():
    with pytest.raises(UserError, match=r"\(C, H, W\) is needed"):
        Patches((2, 3, 4, 4), 2, width=3)
