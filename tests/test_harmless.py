"""Changes that must not raise an alarm, and the promise that they do not."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from PIL import Image
from scipy.ndimage import gaussian_filter

from skmrr import LatentDefender, MarginDetector, MRREnsemble, NoiseDefender
from skmrr.evaluation import false_alarm_interval
from skmrr.harmless import (
    CHANNELS,
    JPEG,
    SEVERITIES,
    Brightness,
    Contrast,
    GaussianBlur,
    GaussianNoise,
    Resizing,
    Rounding,
    Shift,
)

SP = 0.1
CHANGES = [
    *(change for change in CHANNELS.values() if change is not None),
    *(change for changes in SEVERITIES.values() for change in changes),
]


@pytest.fixture
def images():
    """Colour images in [0, 1], smooth as photographs are."""
    noise = np.random.default_rng(0).normal(size=(6, 3, 16, 16))
    smooth = gaussian_filter(noise, (0, 0, 2, 2))
    return torch.as_tensor(0.5 + smooth / np.abs(smooth).max() / 2.5, dtype=torch.float32)


@pytest.mark.parametrize("change", CHANGES, ids=repr)
def test_keeps_shape_range_and_nearly_the_image(images, change):
    changed = change(images)
    assert changed.shape == images.shape
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert not torch.equal(changed, images)
    assert (changed - images).abs().mean() < 0.1


@pytest.mark.parametrize("change", CHANGES, ids=repr)
def test_means_the_same_on_any_scale(images, change):
    on_bytes = change(images * 255, clip_values=(0, 255))
    assert_allclose(on_bytes / 255, change(images), atol=1e-5)
    about_zero = change(images * 2 - 1, clip_values=(-1, 1))
    # A pixel halfway between two levels may be rounded either way.
    assert_allclose((about_zero + 1) / 2, change(images), atol=0.02)
    assert ((about_zero + 1) / 2 - change(images)).abs().mean() < 1e-4


@pytest.mark.parametrize("change", CHANGES, ids=repr)
def test_rows_do_not_depend_on_their_batch(images, change):
    rng = np.random.default_rng(3)
    parts = [change(part, rng=rng) for part in images.split([1, 3, 2])]
    whole = change(images, rng=np.random.default_rng(3))
    assert_allclose(torch.cat(parts), whole, atol=1e-6)


@pytest.mark.parametrize("change", CHANGES, ids=repr)
def test_gradients_pass(images, change):
    x = images.clone().requires_grad_(True)
    changed = change(x)
    assert_allclose(changed.detach(), change(images), atol=1e-6)
    (gradient,) = torch.autograd.grad(changed.square().sum(), x)
    assert gradient.isfinite().all()
    assert (gradient != 0).double().mean() > 0.7


def test_leaves_the_batch_alone(images):
    before = images.clone()
    for change in CHANGES:
        change(images)
    assert torch.equal(images, before)


def test_reads_bytes(images):
    levels = (images * 255).round().to(torch.uint8)
    assert_allclose(JPEG(75)(levels, clip_values=(0, 255)), JPEG(75)(levels / 255) * 255, atol=1e-4)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_is_pillows(images, mode):
    x = images if mode == "RGB" else images[:, :1]
    pixels = (x[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy().squeeze()
    file = io.BytesIO()
    Image.fromarray(pixels, mode=None).save(file, "JPEG", quality=50)
    saved = np.asarray(Image.open(file)).reshape(16, 16, -1).transpose(2, 0, 1)
    assert_allclose(JPEG(50)(x)[0] * 255, saved, atol=1e-3)


def test_blur_is_scipys(images):
    expected = gaussian_filter(images.double().numpy(), (0, 0, 0.8, 0.8), mode="nearest")
    assert_allclose(GaussianBlur(0.8)(images.double()), expected, atol=1e-12)


def test_shift_moves(images):
    moved = Shift(1, -2)(images)
    assert torch.equal(moved[..., 1:, :-2], images[..., :-1, 2:])
    assert torch.equal(moved[..., 0, :-2], images[..., 0, 2:])  # the border is repeated


def test_rounding_counts_bits(images):
    assert len(Rounding(3)(images).unique()) <= 8


def test_brightness_and_contrast(images):
    assert_allclose(Brightness(0.5)(images), images / 2)
    flat = torch.full((1, 3, 4, 4), 0.3)
    assert_allclose(Contrast(1.5)(flat), flat)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: JPEG(0), "quality=0 must be from 1"),
        (lambda: Rounding(0), "bits=0"),
        (lambda: GaussianNoise(-1), "scale=-1 must be at least 0"),
        (lambda: GaussianBlur(0), "sigma=0 must be above 0"),
        (lambda: Resizing(0), "factor=0 must be above 0"),
        (lambda: replace(Brightness(), factor=float("nan")), "factor=nan"),
        (lambda: Contrast(-1), "factor=-1"),
    ],
)
def test_strengths_that_mean_nothing(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_refuses_what_is_no_image(images):
    with pytest.raises(ValueError, match="set input_shape=… for flat rows"):
        Brightness()(images.flatten(1))
    with pytest.raises(ValueError, match="one or three channels, not 2"):
        JPEG()(images[:, :2])


# --- harmless=… of detectors ---


def detectors(net):
    """Detectors, of which each sees noise differently."""
    shared = {"security_parameter": SP, "clip_values": (0, 1), "random_state": 0}
    noise = NoiseDefender(net, **shared)
    return {
        "margin": MarginDetector(net, **shared),
        "noise": noise,
        "latent": LatentDefender(classifier=net, max_epochs=2, **shared),
        "ensemble": MRREnsemble(
            net,
            defenders=[("noise", NoiseDefender(), 1), ("margin", MarginDetector(), 1)],
            **shared,
        ),
    }


@pytest.mark.parametrize("name", ["margin", "noise", "latent", "ensemble"])
def test_promise_holds_under_each_change(net, digits, name):
    X, y = digits
    changes = [GaussianNoise(0.1), Shift(0, 1), Contrast(1.5)]
    detector = detectors(net)[name].set_params(harmless=changes).fit(X[:1200], y[:1200])
    fresh = torch.as_tensor(X[1200:])
    n_ranked = 120 if name == "ensemble" else 240
    highest = false_alarm_interval(SP, len(fresh), 0.999, n_calibration=n_ranked)[1]
    for change in [None, *changes]:
        rows = fresh if change is None else change(fresh, rng=np.random.default_rng(7))
        assert (detector.predict(rows.numpy()) == -1).mean() <= highest


def test_without_harmless_noise_raises_alarms(net, digits):
    X, y = digits
    detector = detectors(net)["noise"].fit(X[:1200], y[:1200])
    noisy = GaussianNoise(0.1)(torch.as_tensor(X[1200:])).numpy()
    assert (detector.predict(noisy) == -1).mean() > 0.5


@pytest.mark.parametrize("name", ["noise", "ensemble"])
def test_oddest_version_sets_the_threshold(net, digits, name):
    """A change more never makes a row look odder; one that does nothing changes nothing."""
    X, y = digits
    plain, same, more = (
        detectors(net)[name].set_params(harmless=harmless).fit(X[:1200], y[:1200])
        for harmless in (None, [lambda x: x], [GaussianNoise(0.05)])
    )
    scores = plain.score_samples(X[1200:])
    assert_allclose(same.score_samples(X[1200:]), scores, atol=1e-9)
    assert more.score_samples(X[1200:]).mean() > scores.mean()


def test_calibrate_knows_the_changes(net, digits):
    X, y = digits
    shared = {"harmless": [GaussianNoise(0.1)], "calibration_fraction": 0.0}
    late = detectors(net)["noise"].set_params(**shared).fit(X[:900], y[:900])
    noisy = GaussianNoise(0.1)(torch.as_tensor(X[1300:])).numpy()
    assert (late.calibrate(X[900:1300]).predict(noisy) == -1).mean() < 0.2


def test_functions_get_the_units_of_the_rows(net, digits):
    X, y = digits
    seen = []

    def watch(x):
        seen.append((float(x.min()), float(x.max()), x.shape[1:]))
        return x

    detectors(net)["margin"].set_params(harmless=[watch]).fit(X[:900], y[:900])
    assert {shape for *_, shape in seen} == {(1, 8, 8)}
    assert max(high for _, high, _ in seen) <= 1


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"harmless": [3]}, TypeError, "3 is no change"),
        ({"harmless": [Shift()], "clip_values": None}, ValueError, "declare it by clip_values"),
        ({"harmless": [lambda x: x[:, :, :4]]}, ValueError, "must return a tensor of that shape"),
        ({"harmless": [lambda x: x + 9]}, ValueError, "outside the declared clip_values"),
        ({"harmless": [lambda x: x / 0]}, ValueError, "NaN or infinity"),
    ],
)
def test_bad_changes_are_refused_before_any_work(net, digits, monkeypatch, params, error, message):
    X, y = digits
    monkeypatch.setattr(MarginDetector, "_fit_members", lambda *args: pytest.fail("was fitted"))
    with pytest.raises(error, match=message):
        detectors(net)["margin"].set_params(**params).fit(X[:900], y[:900])


def test_members_leave_harmless_to_the_ensemble(net, digits):
    X, y = digits
    members = [("noise", NoiseDefender(harmless=[Shift()]), 1)]
    with pytest.raises(ValueError, match="give harmless to the ensemble"):
        MRREnsemble(net, defenders=members, clip_values=(0, 1)).fit(X, y)
