"""The losses against plain torch, on features of several sizes."""

import torch
from torch.nn import functional

from stylegan.networks import normalisation
from stylegan.transfer.losses import content_losses, style_losses, target_of


def maps(seed: int) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    shapes = ((3, 4, 8, 8), (3, 6, 4, 4))
    return [torch.randn(shape, generator=random, dtype=torch.float64) * 2 + 1 for shape in shapes]


def plain_statistics(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and deviation by torch's own functions."""
    return x.mean((2, 3)), (x.var((2, 3), unbiased=False) + 1e-8).sqrt()


def test_the_target_has_the_content_and_the_statistics_of_the_style():
    content, style = maps(0), maps(1)
    mean, deviation = plain_statistics(content[-1])
    normalised = (content[-1] - mean[..., None, None]) / deviation[..., None, None]
    wanted_mean, wanted_deviation = plain_statistics(style[-1])
    expected = normalised * wanted_deviation[..., None, None] + wanted_mean[..., None, None]
    torch.testing.assert_close(target_of(content, style), expected)


def test_losses_are_those_of_the_paper():
    drawn, style, target = maps(0), maps(1), maps(2)[-1]
    content, of_style = content_losses(drawn, target), style_losses(drawn, style)
    torch.testing.assert_close(content.mean(), functional.mse_loss(drawn[-1], target))
    expected = sum(
        functional.mse_loss(own, wanted)
        for x, y in zip(drawn, style, strict=True)
        for own, wanted in zip(plain_statistics(x), plain_statistics(y), strict=True)
    )
    torch.testing.assert_close(of_style.mean(), expected)
    assert content.shape == of_style.shape == (3,)  # a loss for each image


def test_losses_vanish_where_nothing_differs_and_have_gradients():
    drawn = [x.requires_grad_() for x in maps(0)]
    assert not content_losses(drawn, drawn[-1].detach()).any()
    assert not style_losses(drawn, [x.detach() for x in drawn]).any()
    loss = style_losses(drawn, maps(1)).sum()
    assert all(gradient.abs().sum() > 0 for gradient in torch.autograd.grad(loss, drawn))


def test_the_generator_and_the_transfer_take_their_statistics_from_one_function(monkeypatch):
    """What one of them normalises by, the other one transfers: a change of the statistics reaches both."""
    x, style = maps(0)[0], torch.zeros(3, 8, dtype=torch.float64)
    before = (
        normalisation.adain(x, style),
        normalisation.adaptive_instance_norm(x, maps(1)[0]),
        style_losses([x], [maps(1)[0]]),
    )
    statistics = normalisation._statistics

    def tripled(x, how):
        centred, mean, variance = statistics(x, how)
        return centred, mean, 9 * variance

    monkeypatch.setattr(normalisation, "_statistics", tripled)
    after = (
        normalisation.adain(x, style),
        normalisation.adaptive_instance_norm(x, maps(1)[0]),
        style_losses([x], [maps(1)[0]]),
    )
    torch.testing.assert_close(after[0], before[0] / 3)  # the generator divides by three times the deviation
    torch.testing.assert_close(after[1], before[1])  # the transfer too, and then gives three times that of the style
    assert (after[2] > before[2]).all()
