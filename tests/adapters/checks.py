"""Exact advantages, a tiny model and its tokenizer, for the runs with real trainers."""

import importlib.metadata
from fractions import Fraction

from tests import reference


def advantages(rewards, k, baseline="loo_minus_one"):
    """Returns n times the weights of PKPO of one group, by enumeration of its subsets."""
    weights = reference.pkpo_weights([Fraction(r) for r in rewards], k, baseline)
    return [float(len(rewards) * w) for w in weights]


def same(found, expected, tolerance=1e-6):
    """Checks pairs (response, advantage), in order."""
    assert len(found) == len(expected), (len(found), len(expected))
    for (response, ours), (other, exact) in zip(found, expected, strict=True):
        assert response == other and abs(ours - exact) <= tolerance, (response, ours, other, exact)


def word_tokenizer(size):
    """Returns a tokenizer of `transformers` whose words are w3, w4, ..., after three marks."""
    import tokenizers
    import transformers

    marks = ["<pad>", "<bos>", "<eos>"]
    words = {word: i for i, word in enumerate([*marks, *(f"w{i}" for i in range(3, size))])}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w3"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token=marks[0], bos_token=marks[1], eos_token=marks[2]
    )


def tiny_model(size):
    """Returns a random language model of `transformers` for the words of `word_tokenizer`."""
    import transformers

    config = transformers.Qwen2Config(
        vocab_size=size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return transformers.Qwen2ForCausalLM(config)


def versions(*packages):
    return {name: importlib.metadata.version(name) for name in packages}
