import base64
import io
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import jsonschema
import numpy as np
import pytest
from PIL import Image

from eval import gallery
from eval.comparison import compare_scores
from eval.gallery import BUDGET, data_uri, galleries
from eval.generate import plan_images
from eval.plan import ComparisonPlan
from eval.prompts import Prompt
from eval.provenance import Training
from eval.report import Reproduce, write_report
from eval.verdict import verdict

PLAN = ComparisonPlan.model_validate(
    {
        "models": {"base": "a", "dpo": "b"},
        "scorers": [{"kind": "shapes"}],
        "prompts": "<b>prompts</b>",
        "sampler": {"preset": "sd15"},
    }
)


def make_comparison(folder, wins=6, prompts=10, size=(64, 64)):
    """``dpo`` is right on the first ``wins`` prompts where ``base`` is wrong, wrong on the last one."""
    rng = np.random.default_rng(0)
    scores = []
    for model in PLAN.models:
        for row in plan_images(
            model, "abc", [f"prompt {i} <script>" for i in range(prompts)], [0], PLAN.sampler.for_model()
        ):
            (folder / row["file"]).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(folder / row["file"])
            i = row["prompt_index"]
            right = float(i < wins) if model == "dpo" else float(i == prompts - 1)
            for column in PLAN.scorers[0].columns:
                scores.append(
                    {
                        "scorer": "shapes",
                        "column": column,
                        "blank": False,
                        "score": right,
                        "prompt_set": PLAN.sets[0],
                        **{key: row[key] for key in ("model", "prompt", "prompt_index", "seed", "file")},
                    }
                )
    plan = PLAN.model_copy(update={"scorers": [PLAN.scorers[0].model_copy()]})
    return compare_scores(plan, scores, [], {"base": "1234", "dpo": "5678"})


class Page(HTMLParser):
    """The parts of a page that a test asks for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.links: list[str | None] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag == "img":
            self.images.append(values)
        self.links += [values[name] for name in ("src", "href", "xlink:href") if name in values]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    comparison = make_comparison(folder)
    lines = [json.dumps({"step": i, "time": 0, "train/loss": 0.7 - 0.01 * i}) for i in range(20)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 20, "tra')
    sweep = [
        {"trial": "a", "optim.lr": 1e-5, "delta": 0.1, "win_rate": 0.5},
        {"trial": "b", "optim.lr": 1e-4, "delta": 0.2, "win_rate": 0.6},
    ]
    page = write_report(
        folder,
        comparison,
        title="Does <it> help?",
        training_curves=folder / "metrics.jsonl",
        sweep=sweep,
        reproduce=Reproduce(["palate evaluate"], "models: {}"),
    )
    return folder, comparison, page.read_text("utf-8")


def test_the_page_needs_nothing_but_itself(written):
    _, _, text = written
    page = Page(text)
    assert page.images
    assert all((link or "").startswith(("data:", "#")) for link in page.links)
    assert not re.search(r"url\((?!#)|@import|<script[^>]|fetch\(|XMLHttp", text)
    assert text.count("<script>") == 1
    assert len(text) < 5_000_000


def test_every_image_has_an_alternative_text(written):
    assert all(image["alt"] for image in Page(written[2]).images)


def test_text_from_outside_is_escaped(written):
    assert "Does &lt;it&gt; help?" in written[2]
    assert "prompt 3 &lt;script&gt;" in written[2]


def test_every_section_is_there(written):
    for heading in (
        "Results",
        "How much, and how sure",
        "A random sample",
        "Most improved",
        "Most worsened",
        "Training",
        "Search",
        "How to reproduce",
    ):
        assert f">{heading}</h" in written[2]
    assert "palate evaluate" in written[2]
    assert "5678" in written[2]


def test_report_json_holds_every_number(written):
    folder, comparison, _ = written
    facts = json.loads((folder / "report.json").read_text())
    assert facts["differences"][0]["delta"] == pytest.approx(comparison.difference("dpo").delta)
    assert facts["summary"] == [verdict(comparison.difference("dpo"), comparison.headline)]
    assert facts["versions"]["torch"]
    assert len(facts["shown"]["A random sample"]) == 10


def test_report_json_fits_the_schema_beside_it(written):
    folder, _, _ = written
    schema = json.loads((folder / "report.schema.json").read_text())
    facts = json.loads((folder / "report.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(facts, schema)
    for damage in ({"surplus": 1}, {"levels": [{"model": 3}]}, {"summary": "text"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(facts | damage, schema)
    del facts["differences"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(facts, schema)


def test_the_schema_says_what_every_number_is(written):
    folder, *_ = written
    parts = json.loads((folder / "report.schema.json").read_text())["$defs"]
    for record in ("Difference", "Level", "Rating", "Agreement"):
        numbers = {name: part for name, part in parts[record]["properties"].items() if part.get("type") == "number"}
        assert len(numbers) >= 3
        assert [name for name, part in numbers.items() if "description" not in part] == []
    assert "95 % interval" in parts["Difference"]["properties"]["low"]["description"]


def test_improved_and_worsened_prompts_are_those_that_changed(written):
    folder, comparison, _ = written
    grids = {grid.title: grid.rows for grid in galleries(comparison, folder)}
    assert all([cell.mark for cell in row.cells] == [False, True] for row in grids["Most improved"])
    assert [row.prompt for row in grids["Most worsened"]] == ["prompt 9 <script>"]
    assert len(grids["Most improved"]) == 6
    again = {grid.title: grid.rows for grid in galleries(comparison, folder)}
    assert again == grids


def test_small_images_are_inlined_exactly_and_large_ones_reduced(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "small.png")
    Image.new("RGB", (1024, 512)).save(tmp_path / "large.png")
    kind, _, data = data_uri(tmp_path / "small.png").partition(",")
    assert kind == "data:image/png;base64"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), noise)
    kind, _, data = data_uri(tmp_path / "large.png").partition(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (288, 144)


def test_large_images_are_left_out_evenly_when_the_page_would_get_too_big(tmp_path, monkeypatch):
    comparison = make_comparison(tmp_path, wins=6, prompts=8, size=(300, 300))
    monkeypatch.setattr(gallery, "BUDGET", 400_000)
    grids = {grid.kind: len(grid.rows) for grid in galleries(comparison, tmp_path)}
    assert 1 <= grids["sample"] < 8
    assert grids["sample"] - grids["best"] in (0, 1)
    assert grids["worst"] == 1
    monkeypatch.setattr(gallery, "BUDGET", 10**9)
    assert [len(grid.rows) for grid in galleries(comparison, tmp_path)] == [8, 6, 1]
    assert BUDGET < 4_000_000


def test_the_page_tells_what_labelled_the_data_and_picked_the_model(tmp_path):
    comparison = make_comparison(tmp_path)
    assert ">Picked by<" not in write_report(tmp_path, comparison, title="t").read_text("utf-8")
    told = replace(comparison, training={"dpo": Training(picked_by=["implicit_accuracy"])})
    page = write_report(tmp_path, told, title="t").read_text("utf-8")
    assert '<th scope="col">Picked by</th>' in page
    assert "<td>implicit_accuracy</td>" in page
    assert "Labelled by" not in page
    facts = json.loads((tmp_path / "report.json").read_text())
    assert facts["training"]["dpo"]["picked_by"] == ["implicit_accuracy"]


def test_groups_get_their_own_plot(tmp_path):
    comparison = make_comparison(tmp_path)
    prompts = [Prompt(i, f"a red {'circle' if i % 2 else 'square'}", {}) for i in range(10)]
    plan = PLAN.model_copy(update={"scorers": [PLAN.scorers[0]]})
    grouped = compare_scores(plan, comparison.scores, prompts, {})
    assert {group.value for group in grouped.groups} == {"none"}
    assert ">By relation</h3>" in write_report(tmp_path, grouped, title="groups").read_text("utf-8")


@pytest.fixture(scope="module")
def browser():
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    if executable is None:
        pytest.skip("no Chromium on this machine")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.mark.browser
def test_the_gallery_is_filtered_by_keyboard_and_nothing_is_fetched(written, browser):
    folder, *_ = written
    page = browser.new_context(offline=True).new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: problems.append(request.url) if request.url.startswith("http") else None)
    page.goto((folder / "report.html").as_uri())
    visible = page.locator("article.row:visible")
    everything = visible.count()
    assert everything == 10 + 6 + 1
    page.locator("select[name=kind]").focus()
    page.keyboard.type("most worsened")
    assert visible.count() == 1
    page.select_option("select[name=kind]", "")
    page.fill("input[name=text]", "PROMPT 3")
    assert visible.count() == 2
    assert page.locator("output").inner_text() == "2 prompts"
    page.fill("input[name=text]", "")
    page.select_option("select[name=order]", "up")
    first = page.locator(".gridbox[data-kind=sample] article.row").first
    assert first.get_attribute("data-gain") == "-1.0"
    first.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.gain") != "-1.0"
    assert problems == []


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_the_page_in_light_and_dark(written, browser, scheme):
    folder, *_ = written
    page = browser.new_context(color_scheme=scheme).new_page()
    page.goto((folder / "report.html").as_uri())

    def brightness(property_):
        text = page.evaluate(f"getComputedStyle(document.body).{property_}")
        return sum(int(part) for part in re.findall(r"\d+", text)[:3]) / 765

    assert abs(brightness("color") - brightness("backgroundColor")) > 0.6
    assert (brightness("backgroundColor") < 0.5) == (scheme == "dark")
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


@pytest.mark.browser
def test_on_paper_nothing_is_cut_off_or_folded_away(written, browser):
    folder, *_ = written
    page = browser.new_context(color_scheme="dark", viewport={"width": 690, "height": 1000}).new_page()
    page.goto((folder / "report.html").as_uri())
    page.emulate_media(media="print", color_scheme="dark")
    cut = "[...document.querySelectorAll('.card')].filter((card) => card.scrollWidth > card.clientWidth + 1).length"
    assert page.evaluate(cut) == 0
    explained = page.locator("details dl, details .note")
    assert explained.count() > 1
    assert all(explained.nth(i).is_visible() for i in range(explained.count()))
    assert not page.locator("form.tools").is_visible()
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(28, 32, 36)"
