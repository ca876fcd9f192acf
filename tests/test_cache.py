"""The cache: whole or absent, made once, and nothing in it is believed unseen."""

import threading
from pathlib import Path

import pytest
import torch

from flowbench.errors import UsageError
from flowbench.evaluation import cache
from flowbench.evaluation.cache import cached, digest, read

CONTENT = {"state": {"weight": torch.arange(6.0).reshape(2, 3), "count": torch.tensor(3)}, "n": 2}


class Executed:
    """Would make a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "thing-0123.pt"


def never():
    raise AssertionError("made again")


def same(content):
    return digest(content) == digest(CONTENT)


# --- digest --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.tensor([1.0, 2.0000002]), "b": 1},
        {"a": torch.tensor([1.0, 2.0]).view(torch.int32), "b": 1},
        {"a": torch.tensor([[1.0, 2.0]]), "b": 1},
        {"a": torch.tensor([2.0, 1.0]), "b": 1},
        {"c": torch.tensor([1.0, 2.0]), "b": 1},
        {"a": torch.tensor([1.0, 2.0]), "b": 2},
        {"a": torch.tensor([1.0, 2.0]), "b": "1"},
        {"a": torch.tensor([1.0, 2.0])},
        {"a": {"a": torch.tensor([1.0, 2.0]), "b": 1}},
    ],
    ids=["value", "type", "shape", "order", "name", "number", "text", "missing", "nested"],
)
def test_digest_tells_apart(other):
    assert digest({"a": torch.tensor([1.0, 2.0]), "b": 1}) != digest(other)


def test_digest_is_of_the_values_not_of_how_they_lie_in_memory():
    square = torch.arange(16.0).reshape(4, 4)
    assert digest(square.T) == digest(square.T.contiguous())
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest(square[1:3]) == digest(square[1:3].clone().requires_grad_())


# --- cached --------------------------------------------------------------------------------------


def test_content_is_made_once_and_read_back_to_the_last_bit(path):
    assert same(cached(path, lambda: CONTENT))
    assert same(cached(path, never))
    assert same(read(path))


def test_two_at_once_make_it_once(path, monkeypatch):
    begun, waiting, go_on = threading.Event(), threading.Event(), threading.Event()
    said = []
    monkeypatch.setattr(cache, "say", lambda text: (said.append(text), waiting.set()))

    def slow():
        begun.set()
        assert go_on.wait(60)
        return CONTENT

    results = []
    first = threading.Thread(target=lambda: results.append(cached(path, slow)))
    first.start()
    assert begun.wait(60)
    second = threading.Thread(target=lambda: results.append(cached(path, never)))
    second.start()
    assert waiting.wait(60)
    assert not results
    go_on.set()
    first.join()
    second.join()
    assert [same(content) for content in results] == [True, True]
    assert said == [f"waiting for another process to make {path}"]


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9, 0.999])
def test_a_file_cut_short_is_made_anew_and_told(path, share, capsys):
    cached(path, lambda: CONTENT)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert same(cached(path, lambda: CONTENT))
    said = capsys.readouterr().err
    assert str(path) in said
    assert said.count("\n") == 1
    assert same(cached(path, never))


def test_no_flipped_bit_changes_what_is_read(path):
    cached(path, lambda: CONTENT)
    whole = path.read_bytes()
    damaged = 0
    for place in range(0, len(whole), 41):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        try:
            assert same(read(path))
        except UsageError:
            damaged += 1
    assert damaged > 10


@pytest.mark.parametrize(
    "foreign", [CONTENT, [1, 2], torch.ones(3), {"content": CONTENT, "digest": "no"}, "words"]
)
def test_a_file_of_something_else_is_made_anew(path, foreign):
    path.parent.mkdir()
    torch.save(foreign, path)
    assert same(cached(path, lambda: CONTENT))
    assert same(cached(path, never))


def test_a_file_that_got_another_name_is_not_believed(path):
    cached(path, lambda: CONTENT)
    other = path.with_name("thing-4567.pt")
    path.rename(other)
    with pytest.raises(UsageError, match="another content"):
        read(other)


def test_a_file_never_runs_code(path, tmp_path):
    path.parent.mkdir()
    torch.save({"content": Executed(tmp_path / "executed"), "digest": ""}, path)
    assert same(cached(path, lambda: CONTENT))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, OSError])
def test_an_interruption_in_the_writer_leaves_nothing(path, error, monkeypatch):
    save = torch.save

    def interrupted(content, file):
        save(content, file)
        raise error("in the middle")

    monkeypatch.setattr(cache.torch, "save", interrupted)
    with pytest.raises((KeyboardInterrupt, UsageError)):
        cached(path, lambda: CONTENT)
    assert [file.suffix for file in path.parent.iterdir()] == [".lock"]
    monkeypatch.undo()
    assert same(cached(path, lambda: CONTENT))


def test_an_interruption_in_the_making_leaves_nothing(path):
    with pytest.raises(AssertionError, match="made again"):
        cached(path, never)
    assert not path.exists()
    assert same(cached(path, lambda: CONTENT))


def test_what_a_killed_writer_left_is_no_hindrance(path):
    path.parent.mkdir()
    path.with_name(f"{path.name}.partial").write_bytes(b"half")
    assert same(cached(path, lambda: CONTENT))
    assert not path.with_name(f"{path.name}.partial").exists()


def test_a_directory_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UsageError, match=r"cache directory .* cannot be written"):
        cached(tmp_path / "cache" / "thing.pt", lambda: CONTENT)
