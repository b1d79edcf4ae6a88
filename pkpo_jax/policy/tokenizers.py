"""Tokenizers. A policy needs `encode`, `decode`, `vocab_size`, `bos_id` and `stop_tokens`."""

from __future__ import annotations

import string
from collections.abc import Sequence


class CharacterTokenizer:
    """One token a character, for policies trained from scratch. Ids 0, 1, 2 are PAD, EOS, BOS.

    >>> tokenizer = CharacterTokenizer("LRUD")
    >>> tokenizer.encode("RUD")
    [4, 5, 6]
    >>> tokenizer.decode([4, 5, 6, 1, 0])
    'RUD'
    """

    eos_id, bos_id = 1, 2
    stop_tokens = (eos_id,)

    def __init__(self, characters: str = string.printable) -> None:
        repeated = sorted({c for c in characters if characters.count(c) > 1})
        if repeated:
            raise ValueError(f"characters holds {repeated} more than once; each needs one id.")
        self._characters = characters
        self._ids = {c: i + 3 for i, c in enumerate(characters)}

    @property
    def vocab_size(self) -> int:
        return len(self._characters) + 3

    def encode(self, text: str) -> list[int]:
        """Ids of the characters, without BOS or EOS; ValueError on one that has no id."""
        try:
            return [self._ids[c] for c in text]
        except KeyError as e:
            raise ValueError(
                f"no token for the character {e.args[0]!r}; this tokenizer knows "
                f"{self._characters!r}."
            ) from None

    def decode(self, ids: Sequence[int]) -> str:
        """The characters. PAD and EOS give nothing; a BOS within a text is no part of an answer,
        and shows as the replacement character."""
        shown = {0: "", self.eos_id: "", self.bos_id: "\N{REPLACEMENT CHARACTER}"}
        return "".join(shown[i] if i in shown else self._characters[i - 3] for i in ids)
