import hashlib

import pytest
import torch
from safetensors.torch import save_file

from eval.scorers.weights import empty, find_file, in_folder, load_exactly, read_state, weights_name


class Touch:
    """A pickled object that would write a file when it is read."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path):
    torch.save({"state_dict": {"a": torch.zeros(1)}, "more": Touch(tmp_path / "ran")}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="cannot read the checkpoint"):
        read_state(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"model": s, "epoch": 3}])
def test_a_state_dict_is_found_in_its_wrapping(tmp_path, wrap):
    torch.save(wrap({"module.a": torch.ones(2), "module.b": torch.zeros(1)}), tmp_path / "x.pth")
    assert {name: part.tolist() for name, part in read_state(tmp_path / "x.pth").items()} == {"a": [1, 1], "b": [0]}


def test_safetensors_are_read(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors")
    assert read_state(tmp_path / "x.safetensors")["a"].tolist() == [1, 1]


def test_damaged_and_foreign_files_are_named(tmp_path):
    for name, bytes_ in (("x.pt", b"nonsense"), ("x.safetensors", b"\x08")):
        (tmp_path / name).write_bytes(bytes_)
        with pytest.raises(ValueError, match=f"cannot read the checkpoint .*{name}"):
            read_state(tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds no state dict"):
        read_state(tmp_path / "list.pt")
    with pytest.raises(ValueError, match="allowed: a file ending in"):
        read_state(tmp_path / "x.zip")


def test_weights_are_found_by_file_folder_or_hub_id(tmp_path):
    file = tmp_path / "model.pt"
    file.write_bytes(b"1")
    assert find_file(str(file), "other.pt") == file
    assert find_file(str(tmp_path), "model.pt") == file
    assert in_folder(str(tmp_path), "model.pt") == str(file)
    with pytest.raises(ValueError, match=r"no other\.pt in"):
        find_file(str(tmp_path), "other.pt")
    with pytest.raises(ValueError, match=r"no file or folder '\./nothing'"):
        find_file("./nothing", "model.pt")
    with pytest.raises(ValueError, match=r"cannot get model\.pt of 'nobody/nothing' from the hub"):
        find_file("nobody/nothing", "model.pt")


def test_loading_leaves_nothing_random_and_nothing_out():
    state = {"weight": torch.ones(3, 2), "bias": torch.zeros(3)}
    layer = load_exactly(empty(lambda: torch.nn.Linear(2, 3)), state, "x.pt")
    assert layer(torch.ones(1, 2)).tolist() == [[2, 2, 2]]
    for wrong, what in (
        ({"weight": state["weight"]}, "missing: bias"),
        (state | {"scale": torch.ones(1)}, "left over: scale"),
        (state | {"bias": torch.zeros(4)}, r"of another shape: bias \(4,\) instead of \(3,\)"),
    ):
        with pytest.raises(ValueError, match=what):
            load_exactly(empty(lambda: torch.nn.Linear(2, 3)), wrong, "x.pt")
    load_exactly(empty(lambda: torch.nn.Linear(2, 3)), state | {"old.position_ids": torch.ones(1)}, "x", skip=("_ids",))


def test_weights_are_named_by_their_bytes(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(2)}, file)
    first = weights_name(str(file))
    assert first == hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    whole = weights_name(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("not weights")
    assert weights_name(str(tmp_path)) != whole
    save_file({"a": torch.zeros(2)}, file)
    assert weights_name(str(file)) != first


def test_a_hub_id_is_named_by_the_commit_of_its_local_copy(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert weights_name("some/model") == "some/model@unknown"
    (tmp_path / "models--some--model" / "refs").mkdir(parents=True)
    (tmp_path / "models--some--model" / "refs" / "main").write_text("abc123")
    assert weights_name("some/model") == "some/model@abc123"
