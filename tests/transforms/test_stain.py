"""Stain jitter of H&E images."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from skimage.color import hed_from_rgb, separate_stains

from superst_monai.errors import RunError
from superst_monai.transforms.stain import (
    RandStainJitterd,
    jitter_stain,
    stain_concentrations,
    transmitted_light,
)

ONE, ZERO = torch.ones(3), torch.zeros(3)


def tissue_image(seed: int = 0, side: int = 12) -> torch.Tensor:
    """A random image `(3, side, side)` in [0.05, 0.95] whose first row is bare glass."""
    image = 0.05 + 0.9 * torch.rand(3, side, side, generator=torch.Generator().manual_seed(seed))
    image[:, 0] = 1
    return image


def test_mixing_undoes_unmixing():
    """Light -> concentrations -> light is the identity, black and white included."""
    image = tissue_image()
    image[:, 1] = 0
    torch.testing.assert_close(transmitted_light(stain_concentrations(image)), image, atol=1e-5, rtol=0)


def test_concentrations_are_those_of_scikit_image():
    """Where scikit-image does not clip, its stains times ln(10^6) are ours."""
    image = tissue_image()
    theirs = separate_stains(image.permute(1, 2, 0).double().numpy(), hed_from_rgb) * 13.815510558
    ours = stain_concentrations(image).clamp_min(0).permute(1, 2, 0)
    torch.testing.assert_close(ours.double(), torch.from_numpy(theirs), atol=1e-5, rtol=1e-5)


def test_no_jitter_changes_nothing():
    """Factor 1, shift 0 and tint 1 are the identity to 1e-4."""
    image = tissue_image()
    torch.testing.assert_close(jitter_stain(image, factor=ONE, shift=ZERO, tint=ONE), image, atol=1e-4, rtol=0)


def test_glass_takes_no_stain():
    """White pixels stay white under any factor and shift; dark ones take up the whole shift."""
    image = tissue_image()
    image[:, 1] = 0.2
    factor, shift = torch.tensor([1.3, 0.6, 1.2]), torch.tensor([0.2, 0.3, 0.1])
    got = jitter_stain(image, factor=factor, shift=shift, tint=ONE)
    torch.testing.assert_close(got[:, 0], torch.ones(3, 12))
    expected = stain_concentrations(image)[:, 1] * factor[:, None] + shift[:, None]
    torch.testing.assert_close(stain_concentrations(got)[:, 1], expected, atol=1e-4, rtol=0)


def test_the_shift_fades_in_with_the_stain():
    """Halfway to fully stained (mean optical density 0.175) half of the shift is added."""
    image = torch.full((3, 1, 1), 0.175).neg().exp()
    shift = torch.tensor([0.1, 0.2, 0.05])
    got = jitter_stain(image, factor=ONE, shift=shift, tint=ONE)
    expected = stain_concentrations(image)[:, 0, 0] + shift / 2
    torch.testing.assert_close(stain_concentrations(got)[:, 0, 0], expected, atol=1e-5, rtol=0)


def test_one_stain_is_scaled_alone():
    """Doubling haematoxylin doubles its concentration and leaves eosin and DAB."""
    image = tissue_image()[:, 1:] * 0.3 + 0.6
    got = jitter_stain(image, factor=torch.tensor([2.0, 1.0, 1.0]), shift=ZERO, tint=ONE)
    kept = (got > 0).all(0) & (got < 1).all(0)
    before, after = stain_concentrations(image)[:, kept], stain_concentrations(got)[:, kept]
    assert int(kept.sum()) > 20
    torch.testing.assert_close(after, before * torch.tensor([2.0, 1.0, 1.0])[:, None], atol=1e-4, rtol=1e-4)


def test_tint_multiplies_the_light():
    """A tint scales each channel, glass included, and the result is clipped to [0, 1]."""
    image = tissue_image()
    tint = torch.tensor([0.9, 1.0, 1.1])
    got = jitter_stain(image, factor=ONE, shift=ZERO, tint=tint)
    torch.testing.assert_close(got, (image * tint[:, None, None]).clamp(0, 1), atol=1e-4, rtol=0)


def test_same_seed_same_jitter_within_the_amplitudes():
    """The draw repeats with the seed, differs between seeds and stays within the amplitudes."""
    image = tissue_image()
    transform = RandStainJitterd("image", sigma=0.0, sigma_shift=0.0, tint=0.1)
    first, second, third = (transform.set_random_state(seed=seed)({"image": image})["image"] for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    ratio = (first / image)[:, 1:][:, image[:, 1:].amax(0) < 0.9]  # no pixel that a tint up to 1.1 could clip
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), atol=1e-4, rtol=1e-3)
    assert ((ratio > 0.8999) & (ratio < 1.1001)).all()


def test_zero_amplitudes_change_nothing():
    """The transform with all amplitudes 0 is the identity to 1e-4, as is one with probability 0 exactly."""
    image = tissue_image()
    off = RandStainJitterd("image", sigma=0.0, sigma_shift=0.0, tint=0.0)
    torch.testing.assert_close(off({"image": image})["image"], image, atol=1e-4, rtol=0)
    never = RandStainJitterd("image", sigma=0.5, sigma_shift=0.5, tint=0.5, prob=0.0)
    assert never({"image": image})["image"] is image


def test_keys_share_a_draw_and_inputs_stay():
    """Two keys are jittered alike, a MetaTensor stays one, and neither input is written to."""
    image = tissue_image()
    sample = {"a": image.clone(), "b": MetaTensor(image.clone())}
    got = RandStainJitterd(("a", "b"), sigma=0.2, sigma_shift=0.1, tint=0.1).set_random_state(seed=0)(sample)
    assert torch.equal(got["a"], got["b"].as_tensor())
    assert isinstance(got["b"], MetaTensor)
    assert not torch.equal(got["a"], image)
    assert torch.equal(sample["a"], image)
    assert torch.equal(sample["b"].as_tensor(), image)


@pytest.mark.parametrize("bad", [{"sigma": -0.1}, {"sigma_shift": 1.0}, {"tint": float("nan")}])
def test_impossible_amplitudes_are_refused(bad: dict[str, float]):
    """Amplitudes lie in [0, 1); the message names the one at fault."""
    with pytest.raises(RunError, match=rf"must lie in \[0, 1\), got {{'{next(iter(bad))}'"):
        RandStainJitterd("image", **{"sigma": 0.1, "sigma_shift": 0.1, "tint": 0.1, **bad})
