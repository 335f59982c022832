"""The server as users start it: the verb in its own process, on Ray Serve, spoken to by real clients."""

import base64
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openai
import pytest
from PIL import Image

from eval.generate import generate, use_scheduler
from eval.models import load_pipeline
from tests.tiny_models import make_tiny_sd

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1200)]

ROOT = Path(__file__).parents[2]
KEY = "a key that only this test knows"
PROMPT = "a red circle above a blue square"
CAPACITY = 3
CONFIG = """
port: {port}
api_key_env: PALATE_TEST_KEY
models: {{base: {folder}/base}}
runs: {folder}/runs
sampler: {{num_inference_steps: 2, batch_size: 4}}
limits: {{max_steps: 100, queue_length: {capacity}}}
"""


@dataclass
class Server:
    url: str
    base: Path

    def client(self, key: str = KEY, max_retries: int = 0) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=max_retries, timeout=120)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    base = make_tiny_sd(folder / "base")
    make_tiny_sd(folder / "runs" / "dpo" / "model", seed=1)
    broken = folder / "runs" / "broken" / "model"
    broken.mkdir(parents=True)
    (broken / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    port = free_port()
    (folder / "serve.yaml").write_text(CONFIG.format(port=port, folder=folder, capacity=CAPACITY))
    command = [sys.executable, "-m", "ray_jobs.serve", "--config", str(folder / "serve.yaml")]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    log = folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT, env=environment | {"PALATE_TEST_KEY": KEY}
        )
    try:
        deadline = time.monotonic() + 900
        while "ready;" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.3)
        yield Server(f"http://127.0.0.1:{port}", base)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()
    told = log.read_text()
    assert "model 'broken' cannot be loaded" in told
    assert KEY not in told
    with pytest.raises(ConnectionError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def draw(client: openai.OpenAI, *, model="base", n=1, size="auto", **extra) -> list[bytes]:
    answer = client.images.generate(prompt=PROMPT, model=model, n=n, size=size, extra_body={"seed": 7, **extra})
    assert answer.data is not None
    return [base64.b64decode(image.b64_json or "") for image in answer.data]


def test_the_client_lists_the_named_model_and_the_runs(server):
    assert [model.id for model in server.client().models.list()] == ["base", "broken", "dpo"]


def test_the_same_seed_gives_the_same_bytes_and_two_images_are_two(server):
    client = server.client()
    [first] = draw(client)
    assert draw(client) == [first]
    two = draw(client, n=2)
    assert len(set(two)) == 2
    assert draw(client, model="dpo") != [first]


def test_the_server_draws_what_evaluation_draws(server):
    pipeline = load_pipeline(server.base)
    use_scheduler(pipeline, "ddim")
    [here] = generate(pipeline, [PROMPT], [7], num_inference_steps=2, guidance_scale=7.5)
    [served] = draw(server.client())
    difference = np.asarray(here, np.int16) - np.asarray(Image.open(io.BytesIO(served)), np.int16)
    assert np.abs(difference).max() <= 1


def test_a_model_that_is_not_served_is_not_found(server):
    with pytest.raises(openai.NotFoundError) as refused:
        draw(server.client(), model="nope")
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"size": "99999x99999"}, "size"), ({"n": 99}, "n"), ({"num_inference_steps": 0}, "num_inference_steps")],
)
def test_what_is_over_a_limit_is_a_bad_request_that_names_the_field(server, fields, param):
    with pytest.raises(openai.BadRequestError) as refused:
        draw(server.client(), **fields)
    assert refused.value.param == param


def test_a_model_that_cannot_be_loaded_fails_alone_and_without_telling_where_it_lies(server):
    with pytest.raises(openai.InternalServerError) as failed:
        draw(server.client(), model="broken")
    assert failed.value.code == "model_load_failed"
    assert str(server.base.parent) not in failed.value.response.text
    assert draw(server.client())


def test_a_wrong_key_is_refused(server):
    with pytest.raises(openai.AuthenticationError):
        draw(server.client(key="wrong"))


def attempt(client: openai.OpenAI, seed: int) -> list[bytes] | openai.RateLimitError:
    try:
        return draw(client, num_inference_steps=40, seed=seed)
    except openai.RateLimitError as error:
        return error


def test_too_many_requests_are_told_when_to_come_back_and_none_is_lost_with_retries(server):
    with ThreadPoolExecutor(4 * CAPACITY) as pool:
        seeds = range(4 * CAPACITY)
        impatient, patient = server.client(), server.client(max_retries=60)
        answers = list(pool.map(lambda seed: attempt(impatient, seed), seeds))
        refused = [answer for answer in answers if isinstance(answer, openai.RateLimitError)]
        assert 1 <= len(refused) <= 3 * CAPACITY
        assert all(1 <= int(error.response.headers["Retry-After"]) <= 30 for error in refused)
        images = list(pool.map(lambda seed: attempt(patient, seed), seeds))
    assert len({image[0] for image in images if isinstance(image, list)}) == 4 * CAPACITY


@pytest.mark.browser
def test_the_page_shows_both_models_side_by_side(server):
    from playwright.sync_api import expect, sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-headless-shell") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium is installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        violations = []
        page.on("console", lambda line: violations.append(line.text) if "Content Security" in line.text else None)
        page.goto(server.url)
        expect(page.get_by_role("alert")).to_contain_text("No valid API key", timeout=60_000)
        page.get_by_label("API key").fill(KEY)
        prompt = page.get_by_role("textbox", name="Prompt")
        prompt.click()
        expect(page.get_by_role("checkbox")).to_have_count(3, timeout=60_000)
        page.get_by_label("broken").uncheck()
        prompt.fill(PROMPT)
        page.get_by_role("button", name="Generate").click()
        expect(page.get_by_role("img")).to_have_count(2, timeout=60_000)
        expect(page.get_by_role("figure").first).to_contain_text("base")
        first = page.get_by_role("img").first
        expect(first).to_have_attribute("class", "small", timeout=60_000)
        assert first.evaluate("image => image.naturalWidth") == 16
        before = first.get_attribute("src")
        page.get_by_role("button", name="Another seed").click()
        expect(first).not_to_have_attribute("src", before or "", timeout=60_000)
        for box in page.get_by_role("checkbox").all():
            box.uncheck()
        page.get_by_role("button", name="Generate").click()
        expect(page.get_by_role("alert")).to_have_text("Choose at least one model.")
        browser.close()
    assert violations == []
