"""GGUF files of Gemma 2 and Gemma 3, read in the terms of Hugging Face.

Files are expected as llama.cpp's converter writes them (conversion/gemma.py in its repository):
matrices are [out, in] as in Hugging Face's files, and most of them are quantised; the rows of
queries and keys are in Hugging Face's order; norm scales are stored as 1 plus the parameter; and
the metadata holds the tokenizer. The `gguf` package dequantises the tensors.
"""

from __future__ import annotations

import math
import pathlib
import struct
from typing import Any

import numpy as np

from pkpo_jax.policy.checkpoint_checks import CheckpointError
from pkpo_jax.policy.gguf_header import Entry, Header, Path

# Names of Hugging Face by those of GGUF, without the layer and ".weight".
_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# Types of pieces in sentencepiece_model.proto, which are those of tokens in GGUF, and of models.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
_BPE = 2
_UNKNOWN_TOKEN, _CONTROL_TOKENS = "<unk>", ("<bos>", "<eos>", "<pad>")
# Tensors of the image encoder, which some files of Gemma 3 hold beside those of the text.
_IMAGE_PREFIXES = ("v.", "mm.")


class Tensor:
    """A tensor of a GGUF file that is dequantised when it is indexed.

    It has the methods of a slice of `safetensors`: `get_shape`, `get_dtype` and indexing with
    slices. Indexing reads and dequantises the given rows only, and returns float32.
    """

    def __init__(self, rows: np.ndarray, shape: tuple[int, ...], kind: Any, shift: float) -> None:
        # The rows are bytes, [rows, bytes of a row], of which a vector has one.
        self._rows, self._shape, self._kind, self._shift = rows, shape, kind, shift

    def get_shape(self) -> list[int]:
        return list(self._shape)

    def get_dtype(self) -> str:
        return "F32"

    def __getitem__(self, index: slice | tuple[slice, ...]) -> np.ndarray:
        index = index if isinstance(index, tuple) else (index,)
        if len(self._shape) == 1:
            return self._dequantise(self._rows)[0][index]
        rows, *columns = index
        return self._dequantise(self._rows[rows])[:, *columns]

    def _dequantise(self, rows: np.ndarray, at_once: int = 4096) -> np.ndarray:
        """Dequantises a few rows at once, for which the package needs several times their size."""
        values = np.empty((len(rows), self._shape[-1]), np.float32)
        for start in range(0, len(rows), at_once):
            part = slice(start, start + at_once)
            values[part] = package().dequantize(rows[part], self._kind)
        return values + np.float32(self._shift) if self._shift else values


def tensors(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a GGUF file by the names that Hugging Face gives them.

    Nothing but the header is read until a tensor is indexed.

    Raises:
      CheckpointError: the file is no GGUF file of Gemma 2 or 3, is truncated, or has a quantisation
        that the gguf package cannot dequantise; or the package is not installed.
    """
    entries = Header.read(path).tensors
    kinds = {entry.name: _kind(path, entry) for entry in entries}
    shapes = {entry.name: _bytes_shape(entry, kinds[entry.name]) for entry in entries}
    end = max((x.start + math.prod(shapes[x.name]) for x in entries), default=0)
    data = np.memmap(path, np.uint8, mode="r")
    if len(data) < end:
        raise CheckpointError(
            f"{path} is truncated: it has {len(data):,} bytes, where its tensors end at {end:,}; "
            "download it again."
        )
    found = {}
    for entry in entries:
        if entry.name.startswith(_IMAGE_PREFIXES):
            continue
        name, shape = _name(path, entry), shapes[entry.name]
        rows = data[entry.start : entry.start + math.prod(shape)].reshape(shape)
        shift = -1.0 if name.endswith("norm.weight") else 0.0
        found[name] = Tensor(rows, entry.shape, kinds[entry.name], shift)
    return found


def package() -> Any:
    """Returns the gguf package, which is imported on first use.

    Raises:
      CheckpointError: it is not installed.
    """
    try:
        import gguf
    except ImportError:
        raise CheckpointError('GGUF files need a package: pip install -e ".[gguf]"') from None
    return gguf


def _kind(path: Path, entry: Entry) -> Any:
    """Returns the quantisation of a tensor, after a check that it can be dequantised."""
    gguf = package()
    try:
        kind = gguf.GGMLQuantizationType(entry.kind)
    except ValueError:
        raise CheckpointError(
            f"{path}: {entry.name!r} has a quantisation, number {entry.kind}, which the gguf "
            "package does not know; install a newer one, or convert the model to Q8_0."
        ) from None
    try:
        gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        raise CheckpointError(
            f"{path}: {entry.name!r} is quantised as {kind.name}, which the gguf package cannot "
            "dequantise; convert the model to another type, such as Q8_0."
        ) from None
    return kind


def _bytes_shape(entry: Entry, kind: Any) -> tuple[int, int]:
    """Returns the number of rows of a tensor and the bytes of each; a vector is one row."""
    block, size = package().GGML_QUANT_SIZES[kind]
    return math.prod(entry.shape[:-1]), entry.shape[-1] // block * size


def _name(path: Path, entry: Entry) -> str:
    """Returns the name that Hugging Face gives to a tensor."""
    match entry.name.split("."):
        case ("blk", layer, name, "weight") if name in _LAYER_NAMES:
            return f"model.layers.{layer}.{_LAYER_NAMES[name]}.weight"
        case (name, "weight") if name in _NAMES:
            return f"{_NAMES[name]}.weight"
    raise CheckpointError(
        f"{path} holds {entry.name!r}, which neither Gemma 2 nor Gemma 3 has; give a file that "
        "llama.cpp has converted."
    )


def config(path: Path) -> dict[str, Any]:
    """Returns what the metadata of a GGUF file says, as the keys of Hugging Face's config.json.

    What the metadata leaves out is what every Gemma of the generation has: the pattern of layers,
    the local base frequency, and the query scale, which is head_dim**-0.5 for all but the 27B
    models.

    Raises:
      CheckpointError: the file is no GGUF file of Gemma 2 or 3, or lacks a key.
    """
    header = Header.read(path)
    third = header.architecture == "gemma3"
    layers, width, heads = (
        header[key] for key in ("block_count", "embedding_length", "attention.head_count")
    )
    head_dim = header.get("attention.key_length", 256)
    is_27b = layers == (62 if third else 46)
    period = 6 if third else 2
    table = next((x for x in header.tensors if x.name == "token_embd.weight"), None)
    if table is None:
        raise CheckpointError(f"{path} holds no token_embd.weight; give a file of a whole model.")
    common = {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": header["feed_forward_length"],
        "num_attention_heads": heads,
        "num_key_value_heads": header["attention.head_count_kv"],
        "head_dim": head_dim,
        "vocab_size": table.shape[0],
        "query_pre_attn_scalar": width // heads if is_27b else head_dim,
        "layer_types": [
            "sliding_attention" if layer % period else "full_attention"
            for layer in range(1, layers + 1)
        ],
        "max_position_embeddings": header["context_length"],
        "rms_norm_eps": header["attention.layer_norm_rms_epsilon"],
        "attention_bias": False,
        "hidden_activation": "gelu_pytorch_tanh",
        "tie_word_embeddings": all(x.name != "output.weight" for x in header.tensors),
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
        "torch_dtype": "float32",
    }
    if not third:
        return {
            "architectures": ["Gemma2ForCausalLM"],
            "model_type": "gemma2",
            **common,
            "sliding_window": header.get("attention.sliding_window", 4096),
            "attn_logit_softcapping": header.get("attn_logit_softcapping", 50.0),
            "final_logit_softcapping": header.get("final_logit_softcapping", 30.0),
            "rope_theta": header.get("rope.freq_base", 10_000.0),
        }
    scaling = None
    if header.get("rope.scaling.type") == "linear":
        scaling = {"rope_type": "linear", "factor": header["rope.scaling.factor"]}
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        **common,
        "sliding_window": header["attention.sliding_window"],
        "sliding_window_pattern": period,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": header.get("final_logit_softcapping"),
        "rope_theta": header.get("rope.freq_base", 1_000_000.0),
        "rope_local_base_freq": header.get("rope.freq_base_swa", 10_000.0),
        "rope_scaling": scaling,
    }


def write_tokenizer(path: Path, to: Path) -> None:
    """Writes the tokenizer of a GGUF file as a `tokenizer.model`; see `tokenizer_model`."""
    pathlib.Path(to).write_bytes(tokenizer_model(path))


def tokenizer_model(path: Path) -> bytes:
    """Returns the content of the `tokenizer.model` that the tokenizer of a GGUF file was made from.

    The converter of llama.cpp changed three things, which are undone. It typed every special token
    as CONTROL; `<unk>` is UNKNOWN, and all but padding, EOS and BOS are USER_DEFINED, so that they
    are found in texts. It wrote runs of spaces as they are, where sentencepiece writes U+2581 for
    each. It gave these tokens the score -1000, where sentencepiece gives 0.

    Raises:
      CheckpointError: the file holds no tokenizer of Gemma.
    """
    metadata = Header.read(path).metadata
    kind = metadata.get("tokenizer.ggml.model")
    names = ("tokens", "token_type", "scores")
    tokens, types, scores = (metadata.get(f"tokenizer.ggml.{name}", ()) for name in names)
    if kind != "llama" or not len(tokens) == len(types) == len(scores):
        raise CheckpointError(
            f"{path} holds no sentencepiece tokenizer (its kind is {kind!r}, where 'llama' is "
            "expected); use the tokenizer.model that lies beside the original weights."
        )
    for token in (_UNKNOWN_TOKEN, *_CONTROL_TOKENS):
        if token not in tokens:
            raise CheckpointError(
                f"the tokenizer of {path} has no token {token!r}, so it is not Gemma's; use the "
                "tokenizer.model that lies beside the original weights."
            )
    return _sentencepiece_model(tokens, types, scores)


def _sentencepiece_model(tokens: list[str], types: np.ndarray, scores: np.ndarray) -> bytes:
    """Returns a serialised sentencepiece.ModelProto of a BPE model that encodes as Gemma's does.

    It is written in the wire format of protobuf, because the module that comes with sentencepiece
    needs a version of protobuf that other packages may forbid.
    """
    message = bytearray()
    for token, kind, score in zip(tokens, types.tolist(), scores.tolist(), strict=True):
        if token == _UNKNOWN_TOKEN:
            kind = _UNKNOWN
        elif kind == _CONTROL and token not in _CONTROL_TOKENS:
            kind = _USER_DEFINED
        piece = _field(1, token.replace(" ", "\N{LOWER ONE EIGHTH BLOCK}"))
        # Normal is the default type, which sentencepiece does not write.
        piece += _field(2, score) if kind == _NORMAL else _field(2, 0.0) + _field(3, kind)
        message += _field(1, piece)
    trainer = {3: _BPE, 4: len(tokens), 35: True}
    # The numbers of the ids and of the names of UNK, BOS, EOS and PAD.
    for number, token in enumerate((_UNKNOWN_TOKEN, *_CONTROL_TOKENS)):
        trainer |= {40 + number: tokens.index(token), 45 + number: token}
    # No prefix is added, and spaces are neither removed nor left as they are.
    normalizer = {1: "identity", 3: False, 4: False, 5: True}
    for number, fields in ((2, trainer), (3, normalizer)):
        message += _field(number, b"".join(_field(*item) for item in fields.items()))
    return bytes(message)


def _field(number: int, value: int | float | str | bytes) -> bytes:
    """Returns a field of a message in protobuf's wire format."""
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    value = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    """Returns a non-negative integer as protobuf's groups of seven bits."""
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*groups, value))
