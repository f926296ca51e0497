"""predict.centre=true: a picture of a sign on paper becomes an image like MNIST's."""

import contextlib
import csv
import json

import numpy as np
import pytest
from PIL import Image, ImageDraw

from bnn_exp.deploy.centring import NoInk, centred, is_dark

MNIST = (28, 28)


def seven(scale: float = 1.0, at=(60, 40), size=(300, 260), ink=30, paper=230) -> Image.Image:
    """Returns a picture of a seven whose ink is 80×120 pixels, times `scale`."""
    picture = Image.new("L", size, paper)
    x, y = at
    points = [(x, y), (x + 80 * scale, y), (x + 80 * scale, y + 16 * scale), (x + 36 * scale, y + 120 * scale)]
    points += [(x + 18 * scale, y + 120 * scale), (x + 58 * scale, y + 18 * scale), (x, y + 18 * scale)]
    ImageDraw.Draw(picture).polygon(points, fill=ink)
    return picture


def test_the_ink_fills_a_box_of_20_and_its_centre_of_mass_is_at_pixel_14():
    image, facts = centred(np.asarray(seven()), MNIST, light_ink=True)
    rows, columns = (np.flatnonzero(image.any(axis)) for axis in (1, 0))
    assert image.shape == MNIST and image.dtype == np.uint8 and image.max() == 255 and is_dark(image)
    assert rows[-1] - rows[0] + 1 == 20 and columns[-1] - columns[0] + 1 in (13, 14)  # 80/120 of 20
    for axis in (0, 1):
        sums = image.sum(axis, dtype=np.float64)
        assert (sums * np.arange(28)).sum() / sums.sum() == pytest.approx(14, abs=0.5)
    assert facts.inverted and facts.size == (300, 260) and facts.scaled[1] == 20
    assert np.abs(np.subtract(facts.box, (60, 40, 141, 161))).max() <= 2


@pytest.mark.parametrize(
    "picture",
    [
        seven(at=(150, 100)),
        seven(2.5, size=(900, 1000)),
        seven(ink=230, paper=30),
        seven(ink=120, paper=180),
        seven(12, size=(2400, 2000)),
    ],
    ids=["moved", "enlarged", "light ink", "pale", "very large"],
)
def test_place_size_and_tone_of_the_ink_do_not_matter(picture):
    expected, found = (centred(np.asarray(p), MNIST, light_ink=True)[0] for p in (seven(), picture))
    shifts = [np.roll(found, shift, (0, 1)) for shift in ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0))]  # half a pixel may round
    assert min(np.abs(expected.astype(float) - shifted).mean() for shifted in shifts) < 4


def test_light_that_fades_and_noise_are_no_ink():
    rng = np.random.default_rng(0)
    page = np.asarray(seven(), dtype=np.float64) + np.linspace(-25, 25, 300) + rng.normal(0, 6, (260, 300))
    page[rng.integers(0, 260, 20), rng.integers(0, 300, 20)] = 0  # specks of one pixel
    expected, (found, facts) = (
        centred(np.asarray(seven()), MNIST, True)[0],
        centred(page.clip(0, 255).astype(np.uint8), MNIST, True),
    )
    assert facts.inverted and np.abs(expected.astype(float) - found).mean() < 6


def test_dark_ink_is_made_for_a_network_of_dark_ink():
    light, dark = (centred(np.asarray(seven()), MNIST, light_ink)[0] for light_ink in (True, False))
    assert np.array_equal(255 - light, dark)
    assert not centred(np.asarray(seven()), MNIST, light_ink=False)[1].inverted


@pytest.mark.parametrize("page", [np.full((50, 40), 200, np.uint8), np.zeros((1, 1), np.uint8), np.full((9, 9), 255, np.uint8)])
def test_an_even_picture_has_no_ink(page):
    with pytest.raises(NoInk):
        centred(page, MNIST, light_ink=True)


def test_predict_says_what_it_did(bnn_train, tmp_path):
    (tmp_path / "a").mkdir()
    seven().convert("RGB").save(tmp_path / "a/7.png")
    Image.new("L", (30, 30), 255).save(tmp_path / "a/empty.png")
    plain = bnn_train("task=predict", "from=zoo/mnist_vgg", "input=a", "hydra.run.dir=plain")
    assert plain.code == 0 and "2 of 2" in plain.err and "predict.centre=true" in plain.err
    done = bnn_train("task=predict", "from=zoo/mnist_vgg", "input=a", "predict.centre=true", "hydra.run.dir=out")
    assert done.code == 0 and "1 not readable" in done.err and "no ink" in done.err and "predict.centre=true" not in done.err
    (row,) = csv.DictReader((tmp_path / "out/predictions.csv").open(encoding="utf-8"))
    (one,) = json.loads((tmp_path / "out/predictions.json").read_text())["predictions"]
    assert row["class"] == one["class"] == "7" and row["centred"].startswith("inverted, ink 8")
    assert one["centred"]["inverted"] is True and one["centred"]["scaled"][1] == 20
    assert "centred" not in (tmp_path / "plain/predictions.csv").read_text()


def test_networks_of_other_images_refuse_it(bnn_train, copy_of_run, tmp_path):
    copy_of_run(tmp_path / "run", "trainer=smoke", "trainer.epochs=2", "model.hidden_size=8")  # as in test_norms.py
    seven().save(tmp_path / "7.png")
    done = bnn_train("task=predict", "from=run", "input=7.png", "predict.centre=true")
    assert done.code == 2 and "dataset=digits fill their frame" in done.err and len(done.err.splitlines()) == 2
    assert bnn_train("predict.centre=true", "trainer=smoke").code == 2


@pytest.mark.filterwarnings("error")
def test_specks_alone_divide_by_no_zero():
    """The strength of most pixels near the specks is 0, so their median is too."""
    for seed in range(8):
        specks = (np.random.default_rng(seed).random((120, 100)) < 0.02).astype(np.uint8) * 255
        with contextlib.suppress(NoInk):
            assert centred(specks, MNIST, light_ink=True)[0].shape == MNIST


def on_paper(digit: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns a digit of MNIST as dark ink on a page: enlarged 4 to 8 times, moved, with noise and uneven light."""
    side = int(28 * rng.uniform(4, 8))
    ink = np.asarray(Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC)) / 255
    height, width = (int(side * rng.uniform(1.3, 2.2)) for _ in range(2))
    page = np.zeros((height, width))
    top, left = rng.integers(0, height - side), rng.integers(0, width - side)
    page[top : top + side, left : left + side] = ink
    light = 215 + np.linspace(-20, 20, width) + np.linspace(-20, 20, height)[:, None]
    return (light * (1 - page) + 45 * page + rng.normal(0, 5, page.shape)).clip(0, 255).astype(np.uint8)


@pytest.mark.slow
def test_digits_on_paper_are_recognised_nearly_as_well_as_in_mnist(mnist_folder):
    from bnn_exp import load_packed
    from bnn_exp.data import sources

    data, rng = sources.read("mnist", path=str(mnist_folder)), np.random.default_rng(0)
    images, labels = data.test_images[:1000], data.test_labels[:1000]
    network, pages = load_packed("zoo/mnist_best")[0], [on_paper(image[0], rng) for image in images]
    ways = {
        "MNIST": images,
        "squashed": np.stack([np.asarray(Image.fromarray(page).resize(MNIST)) for page in pages])[:, None],
        "centred": np.stack([centred(page, MNIST, light_ink=True)[0] for page in pages])[:, None],
    }
    accuracy = {name: 100 * float((network.predict(way) == labels).mean()) for name, way in ways.items()}
    assert accuracy["centred"] > accuracy["MNIST"] - 2 and accuracy["squashed"] < 40, accuracy
