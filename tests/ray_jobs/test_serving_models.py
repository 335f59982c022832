"""Which models a server offers, and what the config refuses."""

import json
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from ray_jobs.serve import api_key_digest, plan_rows
from ray_jobs.serving.models import served_models
from ray_jobs.serving.section import Limits, ServeSection


def put_pipeline(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    return folder


def put_lora(folder: Path, base: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "pytorch_lora_weights.safetensors").touch()
    (folder / "provenance.json").write_text(json.dumps({"base_model": base}))
    return folder


def test_named_models_come_first_and_runs_are_served_under_their_names(tmp_path):
    base = put_pipeline(tmp_path / "base")
    put_pipeline(tmp_path / "runs" / "second" / "model")
    put_lora(tmp_path / "runs" / "first" / "model", str(base))
    (tmp_path / "runs" / "unfinished").mkdir()
    served = served_models({"base": str(base)}, str(tmp_path / "runs"))
    assert list(served) == ["base", "first", "second"]
    assert served["first"].base == str(base)
    assert served["second"].kind == "pipeline"


def test_a_lora_on_the_embedded_model_gets_the_folder_of_that_model(tmp_path):
    lora = put_lora(tmp_path / "lora", "embedded")
    base = served_models({"lora": str(lora)}, None)["lora"].base
    assert base is not None
    assert Path(base).parts[-3:] == ("dpo_core", "embedded", "model")


def test_a_folder_that_does_not_exist_is_an_error_that_lists_the_models_found(tmp_path):
    found = put_pipeline(tmp_path / "runs" / "mine" / "model")
    missing = tmp_path / "runs" / "nime" / "model"
    with pytest.raises(ValueError, match=r"models\.dpo: .*does not exist; found: .*" + re.escape(str(found))):
        served_models({"dpo": str(missing)}, None)


def test_a_run_folder_given_for_its_model_folder_is_told_where_the_model_is(tmp_path):
    found = put_pipeline(tmp_path / "runs" / "mine" / "model")
    with pytest.raises(ValueError, match=r"holds neither model_index.json nor .*" + re.escape(str(found))):
        served_models({"dpo": str(found.parent)}, None)


def test_a_hub_id_is_kept_as_it_is_and_a_missing_path_is_not_taken_for_one(tmp_path, monkeypatch):
    assert served_models({"sd": "owner/name-v1.5"}, None)["sd"].source == "owner/name-v1.5"
    monkeypatch.chdir(tmp_path)
    put_pipeline(tmp_path / "runs" / "mine" / "model")
    with pytest.raises(ValueError, match="does not exist"):
        served_models({"dpo": "runs/nime"}, None)


def test_a_runs_folder_without_models_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no run under"):
        served_models({}, str(tmp_path))


def test_two_models_of_one_name_are_an_error(tmp_path):
    folder = put_pipeline(tmp_path / "runs" / "mine" / "model")
    with pytest.raises(ValueError, match="already names"):
        served_models({"mine": str(folder)}, str(tmp_path / "runs"))


def test_the_plan_names_each_model_and_its_folder(tmp_path):
    folder = put_pipeline(tmp_path / "base")
    rows = dict(plan_rows(ServeSection(models={"base": str(folder)})))
    assert rows["model base"] == f"{folder} (pipeline)"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "nothing to serve"),
        ({"models": {"../x": "a"}}, "no model name"),
        ({"models": {"a": "a"}, "host": "0.0.0.0"}, "set api_key_env"),
        ({"models": {"a": "a"}, "limits": {"sizes": ["100x100"]}}, "multiples of 8"),
        ({"models": {"a": "a"}, "limits": {"max_steps": 10}}, "sampler.num_inference_steps"),
    ],
)
def test_a_config_that_cannot_be_served_is_refused_with_the_way_out(fields, words):
    with pytest.raises(ValidationError, match=re.escape(words)):
        ServeSection.model_validate(fields)


def test_loopback_addresses_need_no_key():
    assert ServeSection(models={"a": "a"}, host="::1").is_local
    assert not ServeSection(models={"a": "a"}, host="192.0.2.1", api_key_env="KEY").is_local
    assert Limits().queue_length >= 1


def test_a_key_that_is_asked_for_and_not_set_stops_the_server_from_starting(monkeypatch):
    section = ServeSection(models={"a": "a"}, api_key_env="PALATE_TEST_KEY")
    monkeypatch.delenv("PALATE_TEST_KEY", raising=False)
    with pytest.raises(ValueError, match="PALATE_TEST_KEY is empty or not set"):
        api_key_digest(section)
    monkeypatch.setenv("PALATE_TEST_KEY", "secret")
    digest = api_key_digest(section)
    assert digest is not None
    assert b"secret" not in digest
