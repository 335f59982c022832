import json

import huggingface_hub
import pytest

from eval.prompts import load_prompt_set, set_label, split_of
from eval.prompts.hub import is_hub_id


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that lies in a folder."""

    def add(repository, name, text):
        file = tmp_path / repository / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")

    def download(repository, name, repo_type):
        assert repo_type == "dataset"
        file = tmp_path / repository / name
        if not file.is_file():
            raise OSError(f"{name} is not on the hub")
        return str(file)

    def files(self, repository, repo_type):
        return [str(file.relative_to(tmp_path / repository)) for file in (tmp_path / repository).rglob("*.*")]

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", files)
    return add


def test_hpdv2_keeps_equal_texts_apart_by_their_index(hub):
    for style in ("anime", "concept-art", "paintings", "photo"):
        hub("zhwang/HPDv2", f"benchmark/{style}.json", json.dumps([f"{style} cat", "the same text"]))
    prompts = load_prompt_set("hpdv2")
    assert [prompt.index for prompt in prompts] == list(range(8))
    assert [prompt.tags["category"] for prompt in prompts[::2]] == ["anime", "concept-art", "paintings", "photo"]
    assert sum(prompt.text == "the same text" for prompt in prompts) == 4
    assert {prompt.set for prompt in prompts} == {"hpdv2"}


def test_a_dataset_is_read_whole_by_split_or_by_file(hub):
    hub("owner/set", "data/train-00000-of-00001.jsonl", '{"caption": "seen"}\n')
    hub("owner/set", "data/test-00000-of-00001.jsonl", '{"caption": "unseen"}\n')
    hub("owner/set", "README.md", "about")
    hub("owner/set", "more.txt", "extra\n")
    assert sorted(prompt.text for prompt in load_prompt_set("owner/set")) == ["seen", "unseen"]
    assert [prompt.text for prompt in load_prompt_set("owner/set@test")] == ["unseen"]
    assert [prompt.text for prompt in load_prompt_set("owner/set:more.txt")] == ["extra"]
    assert set_label("owner/set@test") == "owner/set@test"
    with pytest.raises(ValueError, match="no prompt file of split 'dev'"):
        load_prompt_set("owner/set@dev")
    with pytest.raises(ValueError, match=r"cannot get prompts 'owner/set:gone\.txt'"):
        load_prompt_set("owner/set:gone.txt")


def test_paths_are_not_taken_for_hub_ids():
    assert is_hub_id("owner/set")
    assert not is_hub_id("folder/prompts.txt")
    assert not is_hub_id("./folder")
    assert not is_hub_id("partiprompts")


def test_a_folder_of_files_gives_each_its_category(tmp_path):
    (tmp_path / "b.txt").write_text("two\n")
    (tmp_path / "a.json").write_text('["one"]')
    (tmp_path / "LICENSE.txt").write_text("no prompt\n")
    prompts = load_prompt_set(str(tmp_path))
    assert [(prompt.index, prompt.text, prompt.tags["category"]) for prompt in prompts] == [
        (0, "one", "a"), (1, "two", "b")
    ]  # fmt: skip


def test_dev_and_report_share_no_prompt_and_make_up_the_whole():
    whole, dev, report = (load_prompt_set("partiprompts", split=split) for split in ("all", "dev", "report"))
    assert len(dev) + len(report) == len(whole)
    assert not {prompt.index for prompt in dev} & {prompt.index for prompt in report}
    assert 0.3 < len(dev) / len(whole) < 0.37
    assert all(whole[prompt.index] == prompt for prompt in dev)


def test_a_text_is_on_one_side_in_every_set():
    assert split_of("A red circle") == split_of("a red  circle!")
