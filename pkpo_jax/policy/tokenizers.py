"""The tokenizers of Gemma, and one of characters for policies trained from scratch.

Both have `encode_prompt`, `encode`, `decode`, `vocab_size`, `bos_id`, `eos_id` and `stop_tokens`.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

from etils import epath

from pkpo_jax.policy import gguf, official


class CharacterTokenizer:
    """A tokenizer with one token for each character, for policies trained from scratch.

    Ids 0, 1 and 2 are PAD, EOS and BOS. The characters follow in the given order.

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
        # The texts of PAD, EOS, BOS and the characters.
        self._texts = ["", "", "\N{REPLACEMENT CHARACTER}", *characters]

    @property
    def vocab_size(self) -> int:
        return len(self._characters) + 3

    def encode(self, text: str) -> list[int]:
        """Returns the ids of the characters, without BOS or EOS.

        Raises:
          ValueError: a character has no id.
        """
        try:
            return [self._ids[c] for c in text]
        except KeyError as e:
            raise ValueError(
                f"no token for the character {e.args[0]!r}; the tiny policy knows the characters "
                f"of the task's alphabet, {self._characters!r}."
            ) from None

    def encode_prompt(self, text: str) -> list[int]:
        """Returns BOS followed by the ids of a prompt."""
        return [self.bos_id, *self.encode(text)]

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the characters of `ids`.

        PAD and EOS are left out. A BOS becomes the replacement character, so that a text which
        holds one equals no answer.
        """
        return "".join([self._texts[i] for i in ids])


class TokenizerError(ValueError):
    """An error for a tokenizer that cannot be loaded."""


class GemmaTokenizer:
    """The official tokenizer of one generation, from its file or from the `gemma` package.

    A file needs `sentencepiece` alone (`pip install -e ".[tokenizer]"`); the default of the package
    needs the package (`pip install -e ".[gemma]"`).

    Args:
      path: the `tokenizer.model` of this generation, or "" for the default of the gemma package,
        which it downloads from Google's bucket and caches.
      chat: whether prompts are wrapped as a user's turn for the model to answer, as instruction-
        tuned (-it) models expect.

    Raises:
      TokenizerError: `path` does not exist or is not the tokenizer of this generation, what reads
        it is not installed, or the default cannot be downloaded.
    """

    # EOS ends a text, and <end_of_turn> the turn of a chat model.
    eos_id, bos_id = 1, 2
    generation: int
    vocab_size: int
    stop_tokens: tuple[int, int]

    def __init__(self, path: str = "", *, chat: bool = False) -> None:
        name = f"Gemma {self.generation}"
        if path and not epath.Path(path).expanduser().exists():
            raise TokenizerError(
                f"{path} does not exist; expected {name}'s tokenizer.model, which lies beside the "
                "weights on Hugging Face and Kaggle, or an empty path to download it from Google's "
                "bucket."
            )
        try:
            self._tokenizer = _read(path) if path else self._default()
            end_of_turn = self._tokenizer.encode("<end_of_turn>")
        except Exception as e:  # The packages, the file system and the bucket raise many types.
            what = f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}"
            raise TokenizerError(
                f"the tokenizer at {path or 'the default of the gemma package'} cannot be loaded "
                f"({what}); expected the tokenizer.model that lies beside the weights on Hugging "
                "Face and Kaggle."
            ) from e
        if path and end_of_turn != [self.stop_tokens[1]]:
            raise TokenizerError(
                f"{path}: <end_of_turn> has the ids {end_of_turn}, where {name} has "
                f"{self.stop_tokens[1]}; give the tokenizer.model of {name}."
            )
        self._chat = chat

    def _default(self) -> Any:
        return getattr(official.gemma().text, f"Gemma{self.generation}Tokenizer")()

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a response's text, without BOS or EOS."""
        return self._tokenizer.encode(text)

    def encode_prompt(self, text: str) -> list[int]:
        """Returns BOS followed by the ids of a prompt, wrapped as a user's turn for chat models.

        The turn is that of the model's own chat template for one message, which strips its text.
        """
        if self._chat:
            text = f"<start_of_turn>user\n{text.strip()}<end_of_turn>\n<start_of_turn>model\n"
        return [self.bos_id, *self._tokenizer.encode(text)]

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids))


class Gemma2Tokenizer(GemmaTokenizer):
    __doc__ = GemmaTokenizer.__doc__
    generation, vocab_size, stop_tokens = 2, 256_000, (1, 107)


class Gemma3Tokenizer(GemmaTokenizer):
    __doc__ = GemmaTokenizer.__doc__
    generation, vocab_size, stop_tokens = 3, 262_144, (1, 106)


OFFICIAL = {kind.generation: kind for kind in (Gemma2Tokenizer, Gemma3Tokenizer)}


def _read(path: str) -> Any:
    """Returns a sentencepiece processor, whose ids are those of the gemma package."""
    try:
        import sentencepiece
    except ImportError:
        raise ImportError('sentencepiece is missing: pip install -e ".[tokenizer]"') from None
    path = str(epath.Path(path).expanduser())
    if path.endswith(".gguf"):
        return sentencepiece.SentencePieceProcessor(model_proto=gguf.tokenizer_model(path))
    return sentencepiece.SentencePieceProcessor(model_file=path)
