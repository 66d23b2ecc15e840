"""Text data: windows, tokenizers, sources, and errors that say what to do."""

import builtins
import hashlib
import io
import json
import os
import pickle
import socket
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset

from actsearch import data
from actsearch.data import ImageData, TextData, tokenizers
from actsearch.data import text_sources as sources
from actsearch.data.text_sources import TextFile
from actsearch.data.textset import to_tensor, window_starts
from actsearch.data.tokenizers import BPETokenizer, ByteTokenizer, CharTokenizer
from actsearch.errors import DataError, SettingsError, UnknownNameError

SHARED = Path(os.environ.get("ACTSEARCH_DATA") or Path(__file__).parents[2] / ".." / "shared" / "data")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise OSError("no network in tests")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)  # and not connect: loader workers talk over local sockets


def shared(relative: str) -> Path:
    if not (SHARED / relative).exists():
        pytest.skip(f"no {relative} in ../shared/data or ACTSEARCH_DATA")
    return SHARED


def write(folder: Path, text: str, name: str = "own.txt") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


@pytest.fixture(scope="module")
def python() -> TextData:
    return TextData(context=16, batch_size=8)


# --- windows -----------------------------------------------------------------------------------------------------


def test_targets_are_the_tokens_that_follow(python):
    x, y = next(iter(python.train_dataloader()))
    assert x.shape == y.shape == (8, 16)
    assert x.dtype == y.dtype == torch.int64
    assert torch.equal(x[:, 1:], y[:, :-1])


def test_windows_cover_the_text_once_and_share_one_token_with_the_next(python):
    items = python.test_set.__getitems__(range(len(python.test_set)))
    inputs, targets = (torch.cat(parts) for parts in zip(*items, strict=True))
    tokens = python.test_set.tokens.long()
    assert torch.equal(inputs, tokens[: len(inputs)])
    assert torch.equal(targets, tokens[1 : len(targets) + 1])
    assert len(tokens) - 1 - len(inputs) < 16


@pytest.mark.parametrize(
    ("n", "context", "windows"), [(0, 4, 0), (4, 4, 0), (5, 4, 1), (8, 4, 1), (9, 4, 2), (3, 1, 2)]
)
def test_a_window_needs_one_token_more_than_the_context(n, context, windows):
    starts = window_starts(n, context)
    assert starts.tolist() == [context * i for i in range(windows)]
    assert all(start + context < n for start in starts)


def test_a_subset_with_the_default_collate_gives_the_same_batches_as_item_by_item(python):
    indices = [5, 3, 99, 3]
    x, y = next(iter(DataLoader(Subset(python.train_set, indices), batch_size=4)))
    for a, b, i in zip(x, y, indices, strict=True):
        assert torch.equal(a, python.train_set[i][0])
        assert torch.equal(b, python.train_set[i][1])


@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_seed_fixes_the_order(workers):
    module = TextData(context=16, limit_train=40, batch_size=8, num_workers=workers)

    def epoch(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([x for x, _ in module.train_dataloader()])

    assert torch.equal(epoch(1), epoch(1))
    assert not torch.equal(epoch(1), epoch(2))
    assert torch.equal(epoch(1).sort(0)[0], epoch(2).sort(0)[0])


def test_limits_choose_windows_by_seed_and_are_nested():
    whole, a, b, c, d = (
        TextData(context=16, **o)
        for o in (
            {},
            {"limit_train": 50, "limit_test": 9},
            {"limit_train": 50},
            {"limit_train": 50, "seed": 1},
            {"limit_train": 60},
        )
    )
    assert (len(a.train_set), len(a.test_set)) == (50, 9)
    chosen = set(a.train_set.starts.tolist())
    assert len(chosen) == 50
    assert chosen == set(b.train_set.starts.tolist()) != set(c.train_set.starts.tolist())
    assert chosen < set(d.train_set.starts.tolist()) < set(whole.train_set.starts.tolist())
    total = len(whole.train_set)
    for limit in (0, total + 1):
        with pytest.raises(SettingsError, match=rf"limit_train must be from 1 to the {total} windows"):
            TextData(context=16, limit_train=limit).setup()


@pytest.mark.parametrize(
    ("size", "dtype"), [(2, torch.uint8), (256, torch.uint8), (257, torch.uint16), (65536, torch.uint16)]
)
def test_tokens_take_as_few_bytes_as_they_can(size, dtype):
    tokens = to_tensor([np.array([0, size - 1]), np.array([1])], size)
    assert tokens.dtype == dtype
    assert tokens.tolist() == [0, size - 1, 1]
    assert to_tensor([], size).shape == (0,)


# --- tokenizers --------------------------------------------------------------------------------------------------

SAMPLE = "Once upon a time, a “mouse” said: naïve 数学 🙂\n\tTwo  spaces.\n<|endoftext|>\nOnce upon a time again.\n"


@pytest.mark.parametrize("tokenizer", [CharTokenizer.of([SAMPLE]), ByteTokenizer(), "bpe"], ids=["char", "byte", "bpe"])
@pytest.mark.parametrize("text", [SAMPLE, SAMPLE[::-1], "", " "])
def test_a_text_is_decoded_from_its_tokens(tokenizer, text):
    if tokenizer == "bpe":
        pytest.importorskip("tokenizers")
        tokenizer = BPETokenizer.train([SAMPLE] * 3, 280)
    ids = tokenizer.encode(text)
    assert ids.ndim == 1
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert tokenizer.decode(ids) == text


def test_characters_that_the_training_text_lacks_become_one_token_and_are_counted(tmp_path):
    text = "abcab" * 18 + "abcxz\U0001f642aaab\n"
    module = TextData("text", root=write(tmp_path, text), context=2)
    assert module.facts == {"vocab_size": 4, "context": 2}
    assert module.tokenizer.decode(module.test_set.tokens.numpy()) == "abc���aaab�"[-len(module.test_set.tokens) :]
    assert module.unknown == (module.test_set.tokens == 3).sum() == 4
    assert not (module.train_set.tokens == 3).any()


def test_bytes_are_those_of_utf8():
    assert ByteTokenizer().encode("é\n").tolist() == [0xC3, 0xA9, 10]


def test_a_learnt_vocabulary_is_deterministic_and_shorter_than_bytes(tmp_path):
    pytest.importorskip("tokenizers")
    a, b = (TextData(tokenizer="bpe", vocab_size=400, context=16, test_fraction=f) for f in (0.1, 0.1))
    assert a.vocab_size == 400
    assert torch.equal(a.train_set.tokens, b.train_set.tokens)
    byte = TextData(tokenizer="byte", context=16)
    assert len(a.train_set.tokens) < 0.6 * len(byte.train_set.tokens)
    assert a.tokenizer.decode(a.test_set.tokens.numpy()) == byte.tokenizer.decode(byte.test_set.tokens.numpy())
    assert a.tokenizer.encode("a<|endoftext|>b").size == 3  # a separator of documents is one token


def test_a_text_is_encoded_in_pieces_as_it_would_be_in_whole(monkeypatch):
    pytest.importorskip("tokenizers")
    tokenizer = BPETokenizer.train([SAMPLE] * 3, 280)
    text = "".join(f"Once\n  upon {i}\n\na time,\nTwo \n spaces.\n" for i in range(50)) + SAMPLE
    whole = tokenizer.encode(text)
    monkeypatch.setattr(tokenizers, "PIECE", 8)
    assert len(list(tokenizers._pieces(text))) > 90
    assert np.array_equal(tokenizer.encode(text), whole)


def test_gpt2s_vocabulary_is_read_from_its_files_and_padded(tmp_path):
    pytest.importorskip("tokenizers")
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = sorted(ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, "he", "hel", "<|endoftext|>"])}
    (tmp_path / "text" / "gpt2").mkdir(parents=True)
    write(tmp_path / "text" / "gpt2", json.dumps(vocabulary), "vocab.json")
    write(tmp_path / "text" / "gpt2", "#version: 0.2\nh e\nhe l\n", "merges.txt")
    tokenizer = BPETokenizer.gpt2(tmp_path)
    assert tokenizer.vocab_size == 50_304
    assert tokenizer.encode("hello<|endoftext|>").tolist() == [257, *(vocabulary[c] for c in "lo"), 258]
    assert tokenizer.decode(tokenizer.encode(SAMPLE)) == SAMPLE
    write(tmp_path / "text" / "gpt2", "no vocabulary", "vocab.json")
    with pytest.raises(DataError, match="does not hold GPT-2's vocabulary") as error:
        BPETokenizer.gpt2(tmp_path)
    assert "\n" not in str(error.value)


def test_without_its_files_and_without_network_gpt2s_vocabulary_is_an_error_that_says_what_to_do(tmp_path):
    pytest.importorskip("tokenizers")
    with pytest.raises(DataError, match=r"tokenizer: bpe.*vocab\.json.*https://"):
        TextData(tokenizer="gpt2", root=tmp_path).setup()


@pytest.mark.parametrize("name", ["bpe", "gpt2"])
def test_a_missing_library_is_named_with_the_command_that_installs_it(name, tmp_path, monkeypatch):
    real = builtins.__import__

    def without(module, *args, **kwargs):
        if module == "tokenizers":
            raise ImportError(module)
        return real(module, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SettingsError, match=r"pip install 'actsearch\[text\]'"):
        TextData(tokenizer=name, root=tmp_path).setup()
    assert TextData(tokenizer="byte").vocab_size == 256


@pytest.mark.parametrize(("size", "says"), [(256, "at least 257"), (5000, "enough for")])
def test_a_vocabulary_that_cannot_be_learnt_is_an_error(size, says, tmp_path):
    pytest.importorskip("tokenizers")
    with pytest.raises(SettingsError, match=says):
        TextData("text", root=write(tmp_path, SAMPLE), tokenizer="bpe", vocab_size=size, context=2).setup()


# --- sources -----------------------------------------------------------------------------------------------------


def test_the_python_reference_needs_no_file_and_its_end_is_the_test(python):
    from pydoc_data.topics import topics

    whole = "\n".join(topics[name] for name in sorted(topics))
    tokenizer = python.tokenizer
    train, test = (tokenizer.decode(part.tokens.numpy()) for part in (python.train_set, python.test_set))
    assert train == whole[: len(train)]
    assert len(test) == pytest.approx(0.1 * len(whole), abs=1)
    assert python.title.startswith("Python reference (3.")
    assert python.eval_train_set is python.train_set


def test_a_folder_of_texts_is_read_in_the_order_of_names(tmp_path):
    write(tmp_path, "second", "b.txt")
    write(tmp_path, "first", "a.txt")
    write(tmp_path, "other", "c.md")
    module = TextData("text", root=tmp_path, context=1, test_fraction=0.5, tokenizer="byte")
    parts = (module.tokenizer.decode(s.tokens.numpy()) for s in (module.train_set, module.test_set))
    assert "|".join(parts) == "first\n|second"


def test_odd_texts_are_refused_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    for arguments, kind, says in [
        ({"root": tmp_path / "empty"}, DataError, r"a folder of \.txt files"),
        ({"root": tmp_path / "none"}, DataError, "no .*none"),
        ({"root": write(tmp_path, "short")}, SettingsError, "4 tokens, too few for a context of 8"),
        ({"root": tmp_path / "own.txt", "test_fraction": 1.0}, SettingsError, "test_fraction"),
    ]:
        with pytest.raises(kind, match=says) as error:
            TextData("text", context=8, **arguments).setup()
        assert "\n" not in str(error.value)
    (tmp_path / "own.txt").write_bytes(b"caf\xe9 " * 10)
    with pytest.raises(DataError, match=r"own\.txt cannot be read as UTF-8"):
        TextData("text", root=tmp_path / "own.txt", context=2).setup()
    (tmp_path / "own.txt").write_bytes(b"fine\n" * 10 + b"\xff")
    with pytest.raises(DataError, match=r"own\.txt cannot be read as UTF-8"):
        list(TextFile(tmp_path / "own.txt"))


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_a_large_file_comes_in_pieces_that_end_at_line_ends(chunk, tmp_path):
    text = "".join(f"line {i} é\n" for i in range(40)) + "no end"
    file = TextFile(write(tmp_path, text), chunk)
    pieces = list(file)
    assert "".join(pieces) == text == "".join(file)
    assert all(piece.endswith("\n") for piece in pieces[:-1])
    assert all(len(piece) < chunk + 12 for piece in pieces)


def stories(folder: Path, train: str, valid: str) -> Path:
    (folder / "text" / "tinystories").mkdir(parents=True)
    write(folder / "text" / "tinystories", "Lily ran.\n" * 9, train)
    write(folder / "text" / "tinystories", "Ben sat.\n" * 9, valid)
    return folder


def test_tinystories_are_tested_on_their_validation_file(tmp_path):
    root = stories(tmp_path, "TinyStories-train.txt", "TinyStories-valid.txt")
    module = TextData("tinystories", root=root, context=4)
    assert module.title == "TinyStories"
    assert module.tokenizer.decode(module.train_set.tokens.numpy()) == "Lily ran.\n" * 9
    assert len(module.test_set.tokens) == 81
    assert module.unknown == 9 * 4  # B, e, s, t
    with pytest.raises(DataError, match=r"head: true needs one file TinyStories-train\.head….txt .* there are 0"):
        TextData("tinystories", root=root, head=True).setup()


def test_the_head_of_tinystories_is_never_taken_for_the_whole(tmp_path):
    root = stories(tmp_path, "TinyStories-train.head2MiB.txt", "TinyStories-valid.head794KB.txt")
    write(root / "text" / "tinystories", "lower case", "TinyStories-train.head4MB.lowercase.txt")
    assert TextData("tinystories", root=root, context=4, head=True).title == "TinyStories (head)"
    with pytest.raises(DataError, match=r"head: true.*TinyStories-train\.txt.*https://huggingface.co"):
        TextData("tinystories", root=root, context=4).setup()
    write(root / "text" / "tinystories", "more", "TinyStories-train.head1MB.txt")
    with pytest.raises(DataError, match="there are 2"):
        TextData("tinystories", root=root, context=4, head=True).setup()


class Answer(io.BytesIO):
    def __init__(self, content: bytes, announced: int) -> None:
        super().__init__(content)
        self.headers = {"Content-Length": str(announced)}


def test_tinyshakespeare_is_downloaded_once_and_checked(tmp_path, monkeypatch):
    content = b"First Citizen:\nBefore we proceed any further, hear me speak.\n" * 5
    asked = []

    def urlopen(url, timeout):
        asked.append(url)
        return Answer(content, len(content) + (len(asked) == 1))

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    with pytest.raises(DataError, match=r"305 of 306 bytes"):
        TextData("tinyshakespeare", root=tmp_path, context=8).setup()
    with pytest.raises(DataError, match="checksum"):
        TextData("tinyshakespeare", root=tmp_path, context=8).setup()
    assert not [f for f in tmp_path.rglob("*") if f.is_file()]
    monkeypatch.setattr(sources, "SHAKESPEARE_SHA256", hashlib.sha256(content).hexdigest())
    for _ in range(2):
        TextData("tinyshakespeare", root=tmp_path, context=8).setup()
    assert (tmp_path / "tinyshakespeare" / "input.txt").read_bytes() == content
    assert len(asked) == 3


def test_the_real_tinyshakespeare_has_its_65_characters():
    module = TextData("tinyshakespeare", root=shared("text/tinyshakespeare/input.txt"), context=64)
    assert module.facts == {"vocab_size": 66, "context": 64}
    assert (module.title, module.unknown) == ("tinyshakespeare", 0)
    assert len(module.train_set.tokens) + len(module.test_set.tokens) == 1_115_394


def test_the_real_head_of_tinystories_is_read():
    module = TextData("tinystories", root=shared("text/tinystories"), head=True, context=64)
    assert module.title == "TinyStories (head)"
    assert len(module.train_set.tokens) > 2_000_000
    assert 0 < module.unknown < 0.01 * len(module.test_set.tokens)


# --- the door ----------------------------------------------------------------------------------------------------


def test_one_door_opens_to_images_and_text():
    text, images = data.build("python_reference", context=8, augment=None), data.build("digits", limit_train=50)
    assert isinstance(text, TextData)
    assert isinstance(images, ImageData)
    assert (text.kind, images.kind) == ("language_modelling", "classification")
    assert text.facts == {"vocab_size": text.vocab_size, "context": 8}
    assert images.facts == {"num_classes": 10, "in_channels": 1, "image_size": 8, "in_features": 64}
    assert len(images.train_set) == 50


def test_names_are_those_of_all_kinds_together():
    assert data.names() == sorted(
        data.names("images") + data.names("text") + data.names("equations") + data.names("frames")
    )
    assert {"burgers", "heat", "poisson"} <= set(data.names("equations"))
    assert {"digits", "cifar10"} <= set(data.names("images"))
    assert {"python_reference", "tinystories"} <= set(data.names("text"))
    with pytest.raises(UnknownNameError, match="did you mean 'images'"):
        data.names("image")


@pytest.mark.parametrize(
    ("name", "options", "kind", "says"),
    [
        ("tinyshakspeare", {}, UnknownNameError, "did you mean 'tinyshakespeare'"),
        ("cifar11", {}, UnknownNameError, "cifar10"),
        ("digits", {"context": 8}, SettingsError, "context is for text; the data set digits holds images"),
        ("digits", {"tokenizer": "char"}, SettingsError, "tokenizer is for text"),
        ("python_reference", {"augment": True}, SettingsError, "augment is for images"),
        ("python_reference", {"split_sed": 1}, SettingsError, "options: test_fraction"),
        ("tinystories", {"haed": True}, SettingsError, "did you mean 'head'"),
        ("tinystories", {"test_fraction": 0.1}, SettingsError, "options: head"),
        ("python_reference", {"tokenizer": "chars"}, SettingsError, "did you mean 'char'"),
        ("python_reference", {"vocab_size": 300}, SettingsError, "vocab_size belongs to tokenizer 'bpe'"),
        ("python_reference", {"context": 0}, SettingsError, "context"),
        ("python_reference", {"batch_size": 0}, SettingsError, "batch_size"),
    ],
)
def test_odd_arguments_are_refused_before_anything_is_read(name, options, kind, says):
    with pytest.raises(kind, match=says) as error:
        data.build(name, **options)
    assert "\n" not in str(error.value)


def test_the_data_module_can_be_sent_to_another_process(python):
    copy = pickle.loads(pickle.dumps(python))
    assert torch.equal(copy.train_set[3][0], python.train_set[3][0])
