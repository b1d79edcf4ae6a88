"""The turns of Gemma-2, against the template that its checkpoints publish."""

import types

from pkpo_jax.policy import tokenizers

# The chat template of google/gemma-2-2b-it gives this for one message of a user; its BOS is an id.
TURN = "<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n"


def test_a_turn_is_that_of_the_models_own_template(monkeypatch):
    """It strips the text: the prompts of math and code end on a newline."""

    class Words:
        def encode(self, text):
            self.texts = [*getattr(self, "texts", []), text]
            return [7]

    words = Words()
    package = types.SimpleNamespace(text=types.SimpleNamespace(Gemma2Tokenizer=lambda: words))
    monkeypatch.setattr(tokenizers.official, "gemma", lambda: package)
    assert tokenizers.Gemma2Tokenizer(chat=True).encode_prompt("\n What is 1+1?\n\n") == [2, 7]
    assert words.texts[-1] == TURN.format("What is 1+1?")
    # Without turns a prompt is what the task says, to the last character.
    assert tokenizers.Gemma2Tokenizer().encode_prompt(" 1+1=\n") == [2, 7]
    assert words.texts[-1] == " 1+1=\n"
