"""The HTTP interface without Ray: the real application over a real (tiny, untrained) model in this process."""

import asyncio
import base64
from pathlib import Path

import pytest
from fastapi.routing import APIRoute
from starlette.testclient import TestClient

from eval.generate import use_scheduler
from eval.models import load_pipeline
from ray_jobs.serving.api import build_app
from ray_jobs.serving.guard import key_digest
from ray_jobs.serving.images import ImageJob, draw
from ray_jobs.serving.models import ServedModel
from ray_jobs.serving.section import Limits, ServeSection
from tests.tiny_models import make_tiny_sd

KEY = "the key"
MODELS = {name: ServedModel(name, "unused", None, 5) for name in ("base", "dpo")}
WEB = Path(__file__).parents[2] / "ray_jobs" / "web"


@pytest.fixture(scope="module")
def generate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    pipelines = {name: load_pipeline(make_tiny_sd(folder / name, seed=i)) for i, name in enumerate(MODELS)}
    for pipeline in pipelines.values():
        use_scheduler(pipeline, "ddim")

    async def generate(job: ImageJob) -> list[bytes]:
        singles = [ImageJob(job.prompt, (seed,), job.settings) for seed in job.seeds]
        return [image for image in draw(pipelines[job.settings.model], singles) if isinstance(image, bytes)]

    return generate


async def ready() -> bool:
    return True


def app_of(generate, digest=None, **limits):
    limits = {"max_n": 3, "max_steps": 50, "max_body_bytes": 4096, **limits}
    section = ServeSection(models=dict.fromkeys(MODELS, "unused"), limits=Limits.model_validate(limits))
    return build_app(section, MODELS, generate, ready, digest)


def client_of(app):
    return TestClient(app, base_url="http://localhost:8000", raise_server_exceptions=False)


@pytest.fixture(scope="module")
def client(generate):
    return client_of(app_of(generate))


def ask(client, path="/v1/images/generations", **fields):
    return client.post(path, json={"prompt": "a red circle", "num_inference_steps": 2, **fields})


def assert_openai_error(response, status, code):
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_the_same_request_twice_gives_the_same_bytes(client):
    first, second = ask(client, seed=3).json(), ask(client, seed=3).json()
    assert first["data"] == second["data"]
    assert base64.b64decode(first["data"][0]["b64_json"]).startswith(b"\x89PNG")


def test_each_of_several_images_says_the_seed_by_which_it_can_be_had_alone(client):
    several = ask(client, seed=3, n=3).json()["data"]
    assert [image["seed"] for image in several] == [3, 4, 5]
    assert len({image["b64_json"] for image in several}) == 3


def test_a_drawn_seed_is_told_and_gives_the_image_again(client):
    image = ask(client).json()["data"][0]
    assert ask(client, seed=image["seed"]).json()["data"][0] == image


def test_a_comparison_gives_one_image_per_model_in_the_order_asked_for(client):
    answer = ask(client, "/v1/compare", models=["dpo", "base"], seed=1).json()
    assert [image["model"] for image in answer["data"]] == ["dpo", "base"]
    assert answer["data"][0]["b64_json"] != answer["data"][1]["b64_json"]
    assert answer["data"][1]["b64_json"] == ask(client, model="base", seed=1).json()["data"][0]["b64_json"]


def test_models_are_listed_and_found_by_name(client):
    models = client.get("/v1/models").json()["data"]
    assert [model["id"] for model in models] == list(MODELS)
    assert client.get("/v1/models/dpo").json() == models[1]
    assert_openai_error(client.get("/v1/models/nope"), 404, "model_not_found")


def test_health_and_readiness_are_told_apart(generate):
    async def not_ready() -> bool:
        return False

    section = ServeSection(models={"base": "unused"})
    client = client_of(build_app(section, MODELS, generate, not_ready, None))
    assert client.get("/healthz").status_code == 200
    assert_openai_error(client.get("/readyz"), 503, "not_ready")


@pytest.mark.parametrize(
    ("body", "content_type", "code"),
    [
        (b"{", "application/json", "invalid_json"),
        (b"", "application/json", "missing_parameter"),
        (b"{}", "application/json", "missing_parameter"),
        (b'{"prompt": "a", "steps": 3}', "application/json", "unknown_parameter"),
        (b'{"prompt": "a", "n": NaN}', "application/json", "invalid_value"),
        (b'{"prompt": "\\ud800"}', "application/json", "invalid_value"),
        (b'{"prompt": "\xff"}', "application/json", "http_error"),
        (b"[" * 4000, "application/json", "http_error"),
        (b'{"prompt": "a", "seed": 1' + b"0" * 3000 + b"}", "application/json", "invalid_value"),
        (b'{"prompt": "a"}', "text/plain", "invalid_value"),
        (b"prompt=a", "application/x-www-form-urlencoded", "invalid_value"),
    ],
)
def test_a_body_that_cannot_be_used_is_a_bad_request_in_the_openai_shape(client, body, content_type, code):
    response = client.post("/v1/images/generations", content=body, headers={"Content-Type": content_type})
    assert_openai_error(response, 400, code)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"prompt": "a", ', "The body is no JSON: Expecting property name enclosed in double quotes at character 16"),
        (b"[]", "The body must be a JSON object, sent with 'Content-Type: application/json'"),
        (b'{"n": 1}', "prompt: Field required"),
        (b'{"prompt": "a", "n": 0}', "n: Input should be greater than or equal to 1; given '0'"),
        (b'{"prompt": "a", "seed": "\\ud800"}', "seed: Input should be a valid integer; given '?'"),
        (b'{"prompt": "a", "steps": 3}', "steps: this server knows no such parameter; leave it out"),
    ],
)
def test_an_error_says_what_was_wrong_given_and_allowed(client, body, words):
    response = client.post("/v1/images/generations", content=body, headers={"Content-Type": "application/json"})
    assert response.json()["error"]["message"] == words


def test_a_body_over_the_limit_is_refused_with_and_without_a_declared_length(client):
    assert_openai_error(ask(client, user="x" * 5000), 413, "body_too_large")
    chunks = (b"x" * 100 for _ in range(100))
    assert_openai_error(client.post("/v1/images/generations", content=chunks), 413, "body_too_large")


def test_unknown_paths_and_methods_answer_in_the_openai_shape(client):
    assert_openai_error(client.get("/v1/nope"), 404, "not_found")
    assert_openai_error(client.delete("/v1/models"), 405, "method_not_allowed")
    assert_openai_error(client.get("/static/../compare.html"), 404, "not_found")


def test_every_api_route_asks_for_the_key_and_nothing_else_does(generate):
    app = app_of(generate, key_digest(KEY))
    client = client_of(app)
    routes = [
        (method, route.path) for route in app.routes if isinstance(route, APIRoute) for method in route.methods or ()
    ]
    assert len(routes) == 7
    for method, path in routes:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {KEY}"}):
            response = client.request(method, path.replace("{name}", "base"), headers=headers)
            if path.startswith("/v1/"):
                assert_openai_error(response, 401, "invalid_api_key")
                assert response.headers["www-authenticate"] == "Bearer"
            else:
                assert response.status_code == 200
    assert client.get("/v1/models", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200


def test_a_page_from_elsewhere_cannot_reach_a_local_server_under_its_own_name(client):
    assert_openai_error(client.get("/v1/models", headers={"Host": "evil.example:8000"}), 403, "host_not_allowed")
    assert client.get("/v1/models", headers={"Host": "127.0.0.1:9"}).status_code == 200
    assert "access-control-allow-origin" not in client.get("/", headers={"Origin": "http://evil.example"}).headers


def test_a_failure_inside_is_a_server_error_that_tells_nothing_about_the_machine():
    async def fail(job: ImageJob) -> list[bytes]:
        raise RuntimeError("/home/someone/weights.bin")

    response = ask(client_of(app_of(fail)))
    assert_openai_error(response, 500, "internal_error")
    assert "/home" not in response.text


def test_a_request_that_takes_too_long_is_given_up():
    given_up = []

    async def hang(job: ImageJob) -> list[bytes]:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            given_up.append(job.settings.model)
            raise
        return []

    response = ask(client_of(app_of(hang, timeout_s=0.1)), "/v1/compare")
    assert_openai_error(response, 504, "timeout")
    assert sorted(given_up) == ["base", "dpo"]


def test_the_page_shows_the_defaults_and_has_nothing_that_its_policy_forbids(client):
    page = client.get("/")
    assert page.status_code == 200
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert 'value="50"' in page.text
    assert "a red circle above a blue square" in page.text
    for forbidden in (" style=", "onclick=", "<script>", "<style>", "http://", "https://"):
        assert forbidden not in page.text
    for name in ("compare.js", "style.css", "icon.svg"):
        assert f"/static/{name}" in page.text
        assert client.get(f"/static/{name}").content == (WEB / "static" / name).read_bytes()
