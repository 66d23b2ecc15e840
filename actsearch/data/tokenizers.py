"""Tokenizers: text to token ids and back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from actsearch.data.download import fetch_file
from actsearch.data.text_sources import text_root
from actsearch.errors import DataError, SettingsError, unknown_name

GPT2_URL = "https://huggingface.co/openai-community/gpt2/resolve/main"
GPT2_VOCABULARY = 50_304  # 50,257 padded to a multiple of 64, as usual: matrix products are faster
SEPARATOR = "<|endoftext|>"
UNKNOWN = "\N{REPLACEMENT CHARACTER}"
# A text is encoded in pieces, in parallel; between a single line break and a letter no token of GPT-2's is cut.
PIECE = 1 << 16  # characters
CUT = re.compile(r"(?<=\S\n)(?=\S)")
TOKENIZERS = ("char", "byte", "bpe", "gpt2")


class Tokenizer(Protocol):
    """Ids are from 0 to `vocab_size` − 1."""

    vocab_size: int

    def encode(self, text: str) -> NDArray[np.integer]:
        """The ids of `text`, (N,)."""
        ...

    def decode(self, ids: NDArray[np.integer]) -> str: ...


class CharTokenizer:
    """One id for each of `characters`, in their order, and after them one for every other character."""

    def __init__(self, characters: str) -> None:
        self.characters = characters
        self.unknown = len(characters)
        self.vocab_size = len(characters) + 1
        self._ids = np.full(max(map(ord, characters), default=0) + 2, self.unknown, dtype=np.int32)
        self._ids[[ord(c) for c in characters]] = np.arange(len(characters))

    @classmethod
    def of(cls, pieces: Iterable[str]) -> CharTokenizer:
        """Of all characters in a text."""
        found: set[str] = set()
        for piece in pieces:
            found |= set(piece)
        return cls("".join(sorted(found)))

    def encode(self, text: str) -> NDArray[np.integer]:
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        return self._ids[np.minimum(points, len(self._ids) - 1)]  # its last entry stands for all that lie beyond

    def decode(self, ids: NDArray[np.integer]) -> str:
        return "".join((self.characters + UNKNOWN)[i] for i in ids)


class ByteTokenizer:
    """The bytes of UTF-8."""

    vocab_size = 256

    def encode(self, text: str) -> NDArray[np.integer]:
        return np.frombuffer(text.encode("utf-8"), dtype=np.uint8)

    def decode(self, ids: NDArray[np.integer]) -> str:
        return bytes(int(i) for i in ids).decode("utf-8", "replace")


class BPETokenizer:
    """Byte-level byte-pair encoding (Sennrich et al. 2016; Radford et al. 2019) by the library `tokenizers`.

    `vocab_size` may be above the number of tokens that there are; the ids between them are never used.
    """

    def __init__(self, tokenizer: Any, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self.vocab_size = vocab_size

    @classmethod
    def train(cls, pieces: Iterable[str], vocab_size: int) -> BPETokenizer:
        """Learn `vocab_size` tokens from a text: the 256 bytes, a separator, and merges; the same text, the same ones.

        Raises SettingsError for fewer than 257 tokens, or for more than the text has merges for.
        """
        library = _library()
        if vocab_size < 257:
            raise SettingsError(f"tokenizer 'bpe' needs a vocab_size of at least 257, not {vocab_size}")
        tokenizer = _byte_level(library, library.models.BPE())
        trainer = library.trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[SEPARATOR],
            initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(pieces, trainer)
        if tokenizer.get_vocab_size() < vocab_size:
            raise SettingsError(
                f"the text is enough for {tokenizer.get_vocab_size()} tokens only; lower vocab_size from {vocab_size}"
            )
        return cls(tokenizer, vocab_size)

    @classmethod
    def gpt2(cls, root: Path) -> BPETokenizer:
        """GPT-2's 50,257 tokens from <root>/[text/]gpt2/{vocab.json,merges.txt}, downloaded if they are not there."""
        library = _library()
        folder = text_root(root) / "gpt2"
        paths = [folder / name for name in ("vocab.json", "merges.txt")]
        for path in paths:
            if not path.is_file():
                fetch_file(f"{GPT2_URL}/{path.name}", path, "GPT-2's vocabulary (or use tokenizer: bpe)")
        try:
            tokenizer = _byte_level(library, library.models.BPE.from_file(*map(str, paths)))
        except Exception as error:  # the library raises nothing narrower
            raise DataError(f"{folder} does not hold GPT-2's vocabulary ({error}): fetch it again") from error
        tokenizer.add_special_tokens([SEPARATOR])
        if tokenizer.get_vocab_size() > GPT2_VOCABULARY:
            raise DataError(f"{folder} holds {tokenizer.get_vocab_size()} tokens; GPT-2 has 50,257: fetch it again")
        return cls(tokenizer, GPT2_VOCABULARY)

    def encode(self, text: str) -> NDArray[np.integer]:
        encoded = self._tokenizer.encode_batch_fast(list(_pieces(text)))
        return np.concatenate([np.array(piece.ids, dtype=np.int32) for piece in encoded])

    def decode(self, ids: NDArray[np.integer]) -> str:
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)


def make_tokenizer(name: str, train: Iterable[str], root: Path, vocab_size: int | None) -> Tokenizer:
    """The tokenizer `name`, learnt from the text `train` where it learns. Raises SettingsError and DataError."""
    check_tokenizer(name, vocab_size)
    if name == "char":
        return CharTokenizer.of(train)
    if name == "byte":
        return ByteTokenizer()
    return BPETokenizer.gpt2(root) if name == "gpt2" else BPETokenizer.train(train, vocab_size or 4096)


def check_tokenizer(name: str, vocab_size: int | None) -> None:
    """Raise SettingsError for an unknown tokenizer, or for a vocab_size that it does not take."""
    if name not in TOKENIZERS:
        raise SettingsError(unknown_name("tokenizer", name, TOKENIZERS))
    if vocab_size is not None and name != "bpe":
        raise SettingsError(f"vocab_size belongs to tokenizer 'bpe'; tokenizer {name!r} has a vocabulary of its own")


def _pieces(text: str) -> Iterator[str]:
    start = 0
    for cut in CUT.finditer(text):
        if cut.start() - start >= PIECE:
            yield text[start : cut.start()]
            start = cut.start()
    yield text[start:]


def _library() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise SettingsError(
            "tokenizers 'bpe' and 'gpt2' need a library: pip install 'actsearch[text]' (or use char or byte)"
        ) from None
    return tokenizers


def _byte_level(library: Any, model: Any) -> Any:
    tokenizer = library.Tokenizer(model)
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    return tokenizer
