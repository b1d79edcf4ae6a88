"""A tiny Gemma-2 of Hugging Face and its logits, kept in tests/data/hf_tiny.

python -m tests.policy.hf_golden

writes them. It needs `pip install torch transformers`; the tests that read them do not. The files
in the repository were written by transformers 5.23.0 and torch 2.13.0. They have the format in
which google/gemma-2-* is published: safetensors in several shards, and an index.
"""

import dataclasses
import pathlib
import shutil

import numpy as np

from tests.policy import gemma_golden

PATH = pathlib.Path(__file__).parents[1] / "data" / "hf_tiny"

# The sizes interpret some parameters of one file differently. The soft-caps affect the logits.
_BASE = gemma_golden.CONFIGS["soft-caps"]
CONFIGS = {
    "2b": dataclasses.replace(_BASE, transpose_gating_einsum=False),
    "9b": dataclasses.replace(_BASE, transpose_gating_einsum=True),
    "27b": dataclasses.replace(_BASE, query_pre_attn_scalar=(24 // 4) ** -0.5),
}


def main():
    import torch
    import transformers

    weights, logits = {}, {}
    for name, c in CONFIGS.items():
        config = transformers.Gemma2Config(
            vocab_size=c.vocab_size,
            hidden_size=c.embed_dim,
            intermediate_size=c.hidden_dim,
            num_hidden_layers=c.num_layers,
            num_attention_heads=c.num_heads,
            num_key_value_heads=c.num_kv_heads,
            head_dim=c.head_dim,
            query_pre_attn_scalar=round(c.query_pre_attn_scalar**-2),
            sliding_window=c.sliding_window_size,
            attn_logit_softcapping=c.attn_logits_soft_cap,
            final_logit_softcapping=c.final_logit_softcap,
            max_position_embeddings=64,
            attn_implementation="eager",
        )
        model = transformers.Gemma2ForCausalLM(config).float().eval()
        if not weights:
            generator = torch.Generator().manual_seed(0)
            weights = {
                key: 0.3 * torch.randn(x.shape, generator=generator)
                for key, x in model.named_parameters()
            }
            shutil.rmtree(PATH, ignore_errors=True)
        model.load_state_dict(weights, strict=False)  # The head is tied to the embeddings.
        if not PATH.exists():
            model.save_pretrained(PATH, max_shard_size="40KB")
        with torch.no_grad():
            logits[name] = model(torch.from_numpy(gemma_golden.tokens())).logits.numpy()
    np.savez_compressed(PATH / "logits.npz", **logits)
    print(f"wrote {PATH.name}: {transformers.__version__=}, {torch.__version__=}")


if __name__ == "__main__":
    main()
