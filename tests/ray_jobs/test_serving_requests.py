"""What a request may say, checked without Ray: the request types, the gate and the choice of models."""

import pytest
from pydantic import ValidationError

from ray_jobs.serving.errors import ApiError
from ray_jobs.serving.gate import Gate
from ray_jobs.serving.requests import CompareRequest, ImageRequest, compare_jobs, image_job
from ray_jobs.serving.section import Limits, ServeSection

SECTION = ServeSection(models={"base": "a", "dpo": "b"}, limits=Limits(max_n=3, max_steps=60, max_prompt_length=20))
MODELS = list(SECTION.models)


def job_of(**fields):
    return image_job(ImageRequest.model_validate({"prompt": "a red circle", **fields}), SECTION, MODELS)


def refusal_of(**fields) -> ApiError:
    with pytest.raises(ApiError) as refused:
        job_of(**fields)
    return refused.value


def test_a_bare_prompt_gets_the_first_model_and_the_defaults_of_the_config():
    job = job_of()
    assert job.settings.model == "base"
    assert job.settings.num_inference_steps == SECTION.sampler.num_inference_steps
    assert (job.settings.height, job.settings.width) == (None, None)
    assert len(job.seeds) == 1


def test_image_i_has_the_seed_plus_i_and_seeds_wrap_at_the_end_of_their_range():
    assert job_of(n=3, seed=2**32 - 2).seeds == (2**32 - 2, 2**32 - 1, 0)


def test_requests_without_a_seed_get_different_ones():
    assert job_of().seeds != job_of().seeds


def test_a_size_is_read_as_width_by_height():
    section = SECTION.model_copy(update={"limits": Limits(sizes=["64x128"])})
    job = image_job(ImageRequest(prompt="p", size="64x128"), section, MODELS)
    assert (job.settings.width, job.settings.height) == (64, 128)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 4}, "n"),
        ({"num_inference_steps": 61}, "num_inference_steps"),
        ({"size": "96x96"}, "size"),
        ({"prompt": "x" * 21}, "prompt"),
        ({"negative_prompt": "x" * 21}, "negative_prompt"),
    ],
)
def test_a_request_over_a_limit_is_refused_and_told_which_field(fields, param):
    error = refusal_of(**fields)
    assert (error.status, error.param) == (400, param)


@pytest.mark.parametrize("name", ["nope", "../../etc/passwd", "/etc", "base/", "", "BASE", "x" * 5000])
def test_a_model_that_is_not_served_is_not_found_whatever_it_looks_like(name):
    error = refusal_of(model=name)
    assert (error.status, error.code, error.param) == (404, "model_not_found", "model")
    assert len(error.message) < 300


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": ""},
        {"prompt": None},
        {"n": 0},
        {"n": True},
        {"n": "2"},
        {"seed": -1},
        {"seed": 2**32},
        {"seed": 1.5},
        {"num_inference_steps": 0},
        {"guidance_scale": float("nan")},
        {"guidance_scale": float("inf")},
        {"guidance_scale": -1},
        {"response_format": "url"},
        {"num_inference_step": 3},
        {"image_url": "http://169.254.169.254/"},
    ],
)
def test_a_field_of_the_wrong_kind_is_refused_instead_of_converted_or_ignored(fields):
    with pytest.raises(ValidationError):
        job_of(**fields)


def test_a_comparison_draws_all_models_from_one_seed():
    jobs = compare_jobs(CompareRequest(prompt="p"), SECTION, MODELS)
    assert [job.settings.model for job in jobs] == ["base", "dpo"]
    assert jobs[0].seeds == jobs[1].seeds


@pytest.mark.parametrize(("models", "status"), [(["base", "base"], 400), (["base", "nope"], 404)])
def test_a_comparison_refuses_doubled_and_unknown_models(models, status):
    with pytest.raises(ApiError) as refused:
        compare_jobs(CompareRequest(prompt="p", models=models), SECTION, MODELS)
    assert (refused.value.status, refused.value.param) == (status, "models")


def test_the_gate_lets_in_as_many_as_it_holds_and_says_when_to_come_back():
    gate = Gate(2)
    with gate.admit(), gate.admit():
        with pytest.raises(ApiError) as refused, gate.admit():
            pytest.fail("a third request was let in")
        assert (refused.value.status, refused.value.retry_after_s) == (429, 1)
    with gate.admit():
        assert gate.inside == 1


def test_a_request_that_fails_leaves_the_gate():
    gate = Gate(1)
    with pytest.raises(RuntimeError), gate.admit():
        raise RuntimeError
    assert gate.inside == 0
