"""The data module of texts: windows of tokens as Lightning wants them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actsearch.data.held import HeldData
from actsearch.data.registry import TEXTS, check, read
from actsearch.data.text_sources import TextSource
from actsearch.data.textset import TextSet, to_tensor, window_starts
from actsearch.data.tokenizers import CharTokenizer, Tokenizer, check_tokenizer, make_tokenizer
from actsearch.errors import SettingsError


@dataclass(frozen=True)
class _Loaded:
    title: str
    tokenizer: Tokenizer
    unknown: int
    train: TextSet
    test: TextSet

    @property
    def eval_train(self) -> TextSet:
        """Text is not augmented."""
        return self.train


class TextData(HeldData):
    """Text by name (`actsearch.data.names("text")`); batches are inputs and targets, each (B, context) int64.

    root: folder of the data sets (the file or folder itself for "text"); default: the environment's ACTSEARCH_DATA,
        else ~/.cache/actsearch/data. What is missing there is downloaded.
    context: tokens of a window.
    tokenizer: "char" (the characters of the training text, and one token for all others), "byte", "bpe" (learnt from
        the training text; needs the extra `text`) or "gpt2" (GPT-2's vocabulary, padded to 50,304; the same).
    vocab_size: of "bpe" only; default 4096.
    limit_train, limit_test: use only that many windows, chosen by `seed`.
    options: of the set itself, such as `test_fraction`, or `head` of "tinystories".

    Tokens are held in memory, one or two bytes each, and encoded anew by every process, all of them: "bpe" and "gpt2"
    take about a second for 1.5 million characters on one core. There is no validation part: whoever needs one takes it
    from `train_set`.
    Raises UnknownNameError, SettingsError, and, when the data is first asked for, DataError.
    """

    kind = "language_modelling"

    def __init__(
        self,
        name: str = "python_reference",
        root: str | Path | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        context: int = 256,
        tokenizer: str = "char",
        vocab_size: int | None = None,
        limit_train: int | None = None,
        limit_test: int | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(name, root, batch_size, num_workers, limit_train, limit_test, seed, options)
        check(TEXTS, name, options)
        check_tokenizer(tokenizer, vocab_size)
        if context < 1:
            raise SettingsError(f"context must be at least 1 token, not {context}")
        self.context = context
        self.tokenizer_name = tokenizer
        self.bpe_size = vocab_size

    @property
    def tokenizer(self) -> Tokenizer:
        return self._loaded.tokenizer

    @property
    def vocab_size(self) -> int:
        """Number of tokens, those included that never occur."""
        return self.tokenizer.vocab_size

    @property
    def unknown(self) -> int:
        """Characters of the test text that the training text has not; 0 unless the tokenizer is "char"."""
        return self._loaded.unknown

    @property
    def facts(self) -> dict[str, Any]:
        """What a model must know of the data: see `actsearch.models.build`."""
        return {"vocab_size": self.vocab_size, "context": self.context}

    @cached_property
    def _loaded(self) -> _Loaded:
        source: TextSource = read(TEXTS, self.name, self.root, self.options)
        tokenizer = make_tokenizer(self.tokenizer_name, source.train, self.root, self.bpe_size)
        train, test = (
            to_tensor(map(tokenizer.encode, part), tokenizer.vocab_size) for part in (source.train, source.test)
        )
        return _Loaded(
            title=source.title,
            tokenizer=tokenizer,
            unknown=int((test == tokenizer.unknown).sum()) if isinstance(tokenizer, CharTokenizer) else 0,
            train=self._windows(train, self.limit_train, "train"),
            test=self._windows(test, self.limit_test, "test"),
        )

    def _windows(self, tokens: Tensor, limit: int | None, part: str) -> TextSet:
        starts = window_starts(len(tokens), self.context)
        total = len(starts)
        if total == 0:
            raise SettingsError(
                f"the {part} part of {self.name} has {len(tokens)} tokens, too few for a context of {self.context}"
            )
        if limit is not None:
            if not 1 <= limit <= total:
                raise SettingsError(f"limit_{part} must be from 1 to the {total} windows that there are, not {limit}")
            chosen = np.random.default_rng(self.seed).permutation(total)[:limit]
            starts = starts[torch.from_numpy(np.sort(chosen))]
        return TextSet(tokens, starts, self.context)
