"""Random cosine features: what is fixed, what learns, and the kernel they stand for."""

import torch
from torch.testing import assert_close

from nested.models.random_features import RandomFeatures


def model(seed: int = 0, **given) -> RandomFeatures:
    torch.manual_seed(seed)
    return RandomFeatures((8, 8), 10, **given)


def test_features_by_hand():
    net, x = model(features=3, scale=2.0), torch.rand(2, 8, 8)
    assert_close(net.features(x), (2 / 3) ** 0.5 * torch.cos(x.reshape(2, 64) @ net.frequencies.T + net.phases))
    assert_close(net(x), net.features(x) @ net.head.weight.T + net.head.bias)


def test_products_of_features_are_a_gaussian_kernel():
    net, x = model(features=200_000, scale=3.0), torch.rand(6, 8, 8)
    distance = (x.flatten(1).unsqueeze(1) - x.flatten(1)).square().sum(2)  # (6, 6)
    h = net.features(x)
    assert_close(h @ h.T, torch.exp(-9 * distance / (2 * 64)), rtol=0, atol=0.015)


def test_only_the_head_learns_and_the_rest_is_saved():
    net = model()
    assert [n for n, _ in net.named_parameters()] == ["head.weight", "head.bias"]
    assert set(net.state_dict()) == {"frequencies", "phases", "head.weight", "head.bias"}


def test_features_are_drawn_with_the_initial_weights():
    assert torch.equal(model(1).frequencies, model(1).frequencies)
    assert not torch.equal(model(1).frequencies, model(2).frequencies)
    assert not torch.equal(model(1).phases, model(2).phases)
