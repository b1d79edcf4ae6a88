"""Tokenizers: `encode_prompt`, `encode`, `decode`, `vocab_size`, `eos_id`, `stop_tokens`."""

from __future__ import annotations

import string
from collections.abc import Sequence

from etils import epath

from pkpo_jax.policy import official


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
                f"no token for the character {e.args[0]!r}; the tiny policy knows those of the "
                f"task's alphabet, {self._characters!r}."
            ) from None

    def encode_prompt(self, text: str) -> list[int]:
        """BOS and the ids of a prompt."""
        return [self.bos_id, *self.encode(text)]

    def decode(self, ids: Sequence[int]) -> str:
        """The characters. PAD and EOS give nothing; a BOS within a text is no part of an answer,
        and shows as the replacement character."""
        shown = {0: "", self.eos_id: "", self.bos_id: "\N{REPLACEMENT CHARACTER}"}
        return "".join(shown[i] if i in shown else self._characters[i - 3] for i in ids)


class TokenizerError(ValueError):
    """A tokenizer that cannot be loaded."""


class Gemma2Tokenizer:
    """The official tokenizer, from the `gemma` package (`pip install -e ".[gemma]"`).

    Args:
      path: the `tokenizer.model` of Gemma-2; "" for the package's default, which it downloads from
        Google's bucket and keeps.
      chat: whether prompts are wrapped as a user's turn, which the model answers: for -it models.

    Raises:
      TokenizerError: `path` is not there or no tokenizer, or the package or its default cannot be
        reached.
    """

    vocab_size = 256_000
    eos_id, bos_id = 1, 2
    # The end of a text, and the end of a turn.
    stop_tokens = (1, 107)

    def __init__(self, path: str = "", *, chat: bool = False) -> None:
        if path and not epath.Path(path).expanduser().exists():
            raise TokenizerError(
                f"{path} does not exist; expected Gemma-2's tokenizer.model, which lies beside the "
                "weights on Hugging Face and Kaggle, or an empty path to download it from Google's "
                "bucket."
            )
        kwargs = {"path": str(epath.Path(path).expanduser())} if path else {}
        try:
            self._tokenizer = official.gemma().text.Gemma2Tokenizer(**kwargs)
            self._tokenizer.encode("")  # It reads its file when first used.
        except Exception as e:  # Of the package, the file system or the bucket.
            what = f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}"
            raise TokenizerError(
                f"the tokenizer at {path or 'the default of the gemma package'} cannot be loaded "
                f"({what}); expected the tokenizer.model that lies beside the weights on Hugging "
                "Face and Kaggle."
            ) from e
        self._chat = chat

    def encode(self, text: str) -> list[int]:
        """Ids of a response's text, without BOS or EOS."""
        return self._tokenizer.encode(text)

    def encode_prompt(self, text: str) -> list[int]:
        """Returns BOS and the ids of a prompt, as the turn of a user where the model expects turns.

        A turn is what the model's own chat template makes of one message, which strips its text.
        """
        if self._chat:
            text = f"<start_of_turn>user\n{text.strip()}<end_of_turn>\n<start_of_turn>model\n"
        return [self.bos_id, *self._tokenizer.encode(text)]

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode([int(i) for i in ids])
