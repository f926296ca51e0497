"""Opens both kinds of pages in a headless Chromium: in the sizes of a phone and a desk screen, with light and dark colours.

BNN_EXP_CHROMIUM names a browser in place of the first one found. With BNN_EXP_SCREENSHOTS=FOLDER the slow test writes its
screenshots there: `BNN_EXP_SCREENSHOTS=docs/pictures pytest -m slow tests/records/test_browser.py`.
"""

import os
import shutil
from pathlib import Path

import pytest
from helpers import EVIL, record_of, study_run

from bnn_exp.records.html import run_page, sweep_page
from bnn_exp.records.sweeps.comparison import compare

playwright = pytest.importorskip("playwright.sync_api")

CONTRAST = (Path(__file__).parent / "contrast.js").read_text()
SIZES = {"phone": (360, 740), "desk": (1280, 900)}


@pytest.fixture(scope="module")
def chromium():
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = os.environ.get("BNN_EXP_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    with playwright.sync_playwright() as driver:
        if found is None and not Path(driver.chromium.executable_path).exists():
            pytest.skip("needs a Chromium: `playwright install chromium`, or Debian's package chromium")
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Writes a page of each kind, with random numbers and with names that are too long or odd."""
    folder = tmp_path_factory.mktemp("pages")
    classes = [*EVIL, "a_class_whose_name_is_much_too_long_for_a_phone"]
    summary = {"test_accuracy": 50.0, "binary_parameters": 12345678, "train_seconds": 4321.0, "seconds": 5000.0}
    (folder / "run.html").write_text(run_page(record_of(30, 6, classes, **summary, error="no " * 100, command=["x" * 200])))
    runs = []
    for i in range(24):
        settings = {"model": {"hidden_size": 2 ** (i // 4 % 3)}, "optimizer": {"mask": ("top", "a_long_name")[i // 12]}}
        runs.append(study_run(folder / f"{i}", i % 4, 50 + i, **settings))
    runs.append(study_run(folder / "bad", 0, 1.0, status="failed"))
    (folder / "sweep.html").write_text(sweep_page(compare(runs), folder))
    return folder


@pytest.fixture
def opened(chromium):
    """Opens a file with the size of a phone or a desk screen, in light or dark colours. Fails if the page logs an error or
    loads another file."""
    contexts, said, asked = [], [], []

    def open_page(file: Path, size: str, scheme: str):
        width, height = SIZES[size]
        context = chromium.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, has_touch=size == "phone"
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url.partition(":")[0]))
        page.goto(file.as_uri())
        return page

    yield open_page
    assert said == [] and set(asked) <= {"file", "data"} and asked.count("file") == len(contexts)
    for context in contexts:
        context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["run.html", "sweep.html"])
def test_a_page_fits_and_is_readable(opened, files, name, size, scheme):
    page = opened(files / name, size, scheme)
    page.locator("details").evaluate_all("all => all.forEach(one => one.open = true)")
    width = SIZES[size][0]
    assert page.evaluate("document.documentElement.scrollWidth") == width
    letters = page.locator(".drawing text").first.evaluate(
        "text => 12 * text.ownerSVGElement.getBoundingClientRect().width / text.ownerSVGElement.viewBox.baseVal.width"
    )
    assert letters >= 9.5  # pixels
    assert page.evaluate(CONTRAST) == [], "WCAG AA asks for 4.5"


def test_the_pointer_and_the_arrow_keys_show_the_values_of_a_chart(opened, files):
    page = opened(files / "run.html", "desk", "light")
    losses = [line["train_loss"] for line in record_of(30, 6, EVIL).epochs]
    figure = page.locator("figure", has=page.get_by_role("heading", name="Training loss"))
    box = figure.locator(".drawing svg").bounding_box()
    figure.locator(".drawing svg").hover(position={"x": box["width"] - 5, "y": 60})
    assert figure.locator(".tip").inner_text() == f"epoch 30\nloss: {float(f'{losses[-1]:.5g}'):g}"
    figure.locator(".drawing svg").focus()
    for _ in range(40):
        page.keyboard.press("ArrowLeft")
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    assert figure.locator(".tip").inner_text() == f"epoch 5\nloss: {float(f'{losses[4]:.5g}'):g}"
    page.keyboard.press("Escape")
    assert figure.locator(".tip").is_hidden()


def test_a_heat_map_tells_the_layer_and_the_epoch_under_the_pointer(opened, files):
    page = opened(files / "run.html", "desk", "dark")
    record = record_of(30, 6, EVIL)
    figure = page.locator("figure", has=page.get_by_role("heading", name="Flips per layer"))
    box = figure.locator("image").bounding_box()
    figure.scroll_into_view_if_needed()
    box = figure.locator("image").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 10.5 / 30, box["y"] + box["height"] * 2.5 / 6)
    flips = record.epochs[10]["flips"]["layers.2.weight"]
    assert figure.locator(".tip").inner_text() == f"layers.2.weight, epoch 11\n{flips} flips ({flips / 10:g}% of 1,000)"


def test_a_click_sorts_the_table_of_a_sweep(opened, files):
    page = opened(files / "sweep.html", "desk", "light")

    def column(number):
        return page.locator("table.sortable tbody tr").evaluate_all(
            f"rows => rows.map(row => row.cells[{number}].textContent.trim())"
        )

    before = column(2)
    page.get_by_role("button", name="test_accuracy").click()
    means = [float(text.removeprefix("best").split()[0]) for text in column(2)]
    assert means == sorted(means) and sorted(column(2)) == sorted(before)
    page.get_by_role("button", name="test_accuracy").click()
    assert [float(text.removeprefix("best").split()[0]) for text in column(2)] == means[::-1]
    assert page.locator("th[aria-sort=descending]").inner_text().startswith("test_accuracy")
    page.get_by_role("button", name="hidden_size").click()
    assert column(0) == ["1", "1", "2", "2", "4", "4"]


def test_without_scripts_all_but_the_values_under_the_pointer_is_there(chromium, files):
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((files / "run.html").as_uri())
    assert page.locator("polyline").first.is_visible() and page.locator("table.confusion").is_visible()
    context.close()


PICTURES = {  # file name: (page, screen size, colour scheme, first visible heading)
    "run-desk.png": ("run", "desk", "light", None),
    "run-desk-dark.png": ("run", "desk", "dark", "Classes"),
    "run-phone-dark.png": ("run", "phone", "dark", None),
    "run-phone.png": ("run", "phone", "light", "Flips per layer"),
    "study-desk.png": ("study", "desk", "light", None),
    "study-phone-dark.png": ("study", "phone", "dark", "Configurations"),
}


@pytest.mark.slow
def test_the_pages_of_real_runs_are_as_good_and_leave_their_pictures(opened, bnn_train, tmp_path):
    assert bnn_train("model.hidden_size=512", "hydra.run.dir=run").code == 0
    sweep = ("model.hidden_size=64,128,256", "optimizer.mask=top,random", "seed=0,1,2", "trainer.epochs=40")
    assert bnn_train("-m", *sweep, "trainer.batch_size=128", "hydra.sweep.dir=study").code == 0
    bnn_train("-m", "model.hidden_size=1024", "real_optimizer=sgd", "real_optimizer.lr=1e38", "hydra.sweep.dir=study/bad")
    assert bnn_train("task=report", "from=study").code == 0
    folder = Path(os.environ.get("BNN_EXP_SCREENSHOTS", tmp_path)).absolute()
    for name, (kind, size, scheme, heading) in PICTURES.items():
        page = opened(tmp_path / kind / "report.html", size, scheme)
        assert page.evaluate("document.documentElement.scrollWidth") == SIZES[size][0]
        assert page.evaluate(CONTRAST) == []
        if heading:
            there = page.get_by_role("heading", name=heading, exact=True)
            there.evaluate("it => scrollTo(0, it.getBoundingClientRect().top - 16)")
        page.screenshot(path=folder / name)
        assert (folder / name).stat().st_size < 200_000
