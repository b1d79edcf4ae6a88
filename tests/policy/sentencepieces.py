"""Small sentencepiece tokenizers that are made as Gemma's were, for tests of what reads them."""

import pathlib
from collections.abc import Sequence
from typing import Any


def train(
    directory: pathlib.Path, texts: Sequence[str], symbols: Sequence[str], **options: Any
) -> str:
    """Trains a tokenizer on texts, and returns the path of its tokenizer.model.

    Args:
      directory: where it is written.
      texts: the lines to train on.
      symbols: the user-defined symbols, which follow PAD, EOS, BOS and UNK in the order given.
      **options: further options of the trainer.
    """
    import sentencepiece

    corpus, prefix = directory / "corpus.txt", directory / "tokenizer"
    corpus.write_text("\n".join(texts))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(prefix),
        model_type="bpe",
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        user_defined_symbols=list(symbols),
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    return str(prefix.with_suffix(".model"))
