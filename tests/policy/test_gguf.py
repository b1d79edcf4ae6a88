"""GGUF files, written by the gguf package with the conventions of llama.cpp's converter."""

import json
import struct
import sys

import gguf as package
import numpy as np
import pytest
import safetensors.numpy
from etils import epath

from pkpo_jax.policy import (
    checkpoints,
    gguf,
    hugging_face,
    hugging_face_export,
    sizes,
    tokenizers,
)
from pkpo_jax.policy.checkpoint_checks import CheckpointError
from tests.policy import hf_golden, sentencepieces
from tests.policy.test_checkpoints import assert_equal, assert_one_line, read, tensors

TYPE = package.GGMLQuantizationType
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, _, BYTE = range(1, 7)
# The layout of 4B, the smallest model with a scaled rotation, with other numbers of everything.
METADATA = {
    "context_length": 131072,
    "embedding_length": 64,
    "block_count": 7,
    "feed_forward_length": 96,
    "attention.head_count": 2,
    "attention.head_count_kv": 1,
    "attention.key_length": 32,
    "attention.layer_norm_rms_epsilon": 1e-6,
    "attention.sliding_window": 1024,
    "rope.freq_base": 1_000_000.0,
    "rope.scaling.type": "linear",
    "rope.scaling.factor": 8.0,
}
WIDTH, HIDDEN, ROWS = 64, 96, 50


def write(path, tensors, metadata=METADATA, arch="gemma3", tokenizer=None, **kinds):
    """Writes tensors with Hugging Face's names as llama.cpp does, each of the type in `kinds`."""
    writer = package.GGUFWriter(path, arch)
    for key, value in metadata.items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add[type(value)](key if key.startswith("split.") else f"{arch}.{key}", value)
    if tokenizer is not None:
        tokens, types, scores = tokenizer
        writer.add_tokenizer_model("llama")
        writer.add_token_list(tokens)
        writer.add_token_types(types)
        writer.add_token_scores(scores)
    names = package.get_tensor_name_map(package.MODEL_ARCH[arch.upper()], 99)
    for name, x in tensors.items():
        translated = names.get_name(name, try_suffixes=(".weight",)) or name
        kind = TYPE.F32
        if name.endswith("norm.weight"):
            x = x + 1
        elif x.ndim == 2:
            kind = kinds.get("kind", kind)
        raw = x if x.dtype == np.uint8 else package.quantize(x.astype(np.float32), kind)
        writer.add_tensor(translated, raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def layer_tensors(layer, third=True):
    """Tensors of a layer by their names in Hugging Face's checkpoints."""
    rng = np.random.default_rng(layer)
    shapes = {
        "self_attn.q_proj": (64, WIDTH),
        "self_attn.k_proj": (32, WIDTH),
        "self_attn.v_proj": (32, WIDTH),
        "self_attn.o_proj": (WIDTH, 64),
        "mlp.gate_proj": (HIDDEN, WIDTH),
        "mlp.up_proj": (HIDDEN, WIDTH),
        "mlp.down_proj": (WIDTH, HIDDEN),
        "input_layernorm": (WIDTH,),
        "post_attention_layernorm": (WIDTH,),
        "pre_feedforward_layernorm": (WIDTH,),
        "post_feedforward_layernorm": (WIDTH,),
    }
    if third:
        shapes |= {"self_attn.q_norm": (32,), "self_attn.k_norm": (32,)}
    return {
        f"model.layers.{layer}.{name}.weight": rng.normal(size=shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def model_tensors(third=True):
    rng = np.random.default_rng(99)
    return {
        "model.embed_tokens.weight": rng.normal(size=(ROWS, WIDTH)).astype(np.float32),
        "model.norm.weight": rng.normal(size=WIDTH).astype(np.float32),
        **layer_tensors(0, third),
        **layer_tensors(6, third),
    }


# -- Tensors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["gemma2", "gemma3"])
@pytest.mark.parametrize(
    ("kind", "error"),
    # The largest error of weights of deviation 1, most of which are below 4: half of a step, of
    # which there are 2**bits between the largest and its negative, or bits of the mantissa.
    [("F32", 0), ("F16", 2e-3), ("BF16", 2e-2), ("Q8_0", 0.02), ("Q5_1", 0.15), ("Q4_0", 0.5)],
)
def test_names_shapes_and_values(arch, kind, error, tmp_path):
    expected = model_tensors(third=arch == "gemma3")
    path = write(tmp_path / "model.gguf", expected, arch=arch, kind=TYPE[kind])
    found = gguf.tensors(path)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        x = expected[name]
        assert tuple(tensor.get_shape()) == x.shape
        assert tensor.get_dtype() == "F32"
        whole = tensor[:]
        assert whole.dtype == np.float32
        # Norms are not quantised, but 1 was added to them.
        np.testing.assert_allclose(whole, x, rtol=0, atol=error if x.ndim == 2 else 2e-7)
        np.testing.assert_array_equal(tensor[3:17], whole[3:17])
        if x.ndim == 2:
            np.testing.assert_array_equal(tensor[3:17, 5:9], whole[3:17, 5:9])


def dequantised_q4_k(block):
    """Values of a block of 256, by the definition of block_q4_K in ggml-common.h.

    Two float16 numbers scale the 6-bit scales and minima of eight groups of 32; these fill 12
    bytes, and the 4-bit values of two groups share 32 bytes.
    """
    d, dmin = np.frombuffer(block[:4].tobytes(), np.float16).astype(np.float64)
    packed, nibbles = block[4:16].tolist(), block[16:].tolist()
    values = []
    for group in range(8):
        if group < 4:
            scale, minimum = packed[group] & 63, packed[group + 4] & 63
        else:
            low, scale_high, minimum_high = packed[group + 4], packed[group - 4], packed[group]
            scale = (low & 15) | (scale_high >> 6 << 4)
            minimum = (low >> 4) | (minimum_high >> 6 << 4)
        for i in range(32):
            byte = nibbles[32 * (group // 2) + i]
            value = byte >> 4 if group % 2 else byte & 15
            values.append(d * scale * value - dmin * minimum)
    return values


def test_q4_k_by_its_definition(tmp_path):
    rng = np.random.default_rng(0)
    rows, blocks = 3, 2
    raw = rng.integers(0, 256, (rows, blocks, 144)).astype(np.uint8)
    raw[..., :4] = rng.uniform(0.01, 0.1, (rows, blocks, 2)).astype(np.float16).view(np.uint8)
    weights = {"model.embed_tokens.weight": raw.reshape(rows, -1)}
    found = gguf.tensors(write(tmp_path / "model.gguf", weights, kind=TYPE.Q4_K))
    expected = [[x for block in row for x in dequantised_q4_k(block)] for row in raw]
    table = found["model.embed_tokens.weight"]
    assert table.get_shape() == [rows, 512]
    np.testing.assert_allclose(table[:], expected, rtol=1e-5, atol=1e-5)


def test_a_table_of_many_rows(tmp_path):
    """Rows are dequantised in parts, which have to fit together."""
    table = np.random.default_rng(0).normal(size=(9000, 32)).astype(np.float32)
    weights = {"model.embed_tokens.weight": table}
    found = gguf.tensors(write(tmp_path / "model.gguf", weights, kind=TYPE.Q8_0))
    expected = package.dequantize(package.quantize(table, TYPE.Q8_0), TYPE.Q8_0)
    np.testing.assert_array_equal(found["model.embed_tokens.weight"][:], expected)
    np.testing.assert_array_equal(
        found["model.embed_tokens.weight"][4000:8500, 8:], expected[4000:8500, 8:]
    )


def test_tensors_of_images_are_left_out(tmp_path):
    weights = model_tensors()
    images = {"v.blk.0.attn_q.weight": weights["model.embed_tokens.weight"]}
    found = gguf.tensors(write(tmp_path / "model.gguf", weights | images))
    assert found.keys() == weights.keys()


def test_parameters_are_those_of_the_safetensors(tmp_path):
    """The checkpoint that transformers wrote, by way of a GGUF file."""
    config = hf_golden.CONFIGS["9b"]
    described = json.loads((hf_golden.PATH / "config.json").read_text())
    metadata = {
        "context_length": described["max_position_embeddings"],
        "embedding_length": described["hidden_size"],
        "block_count": described["num_hidden_layers"],
        "feed_forward_length": described["intermediate_size"],
        "attention.head_count": described["num_attention_heads"],
        "attention.head_count_kv": described["num_key_value_heads"],
        "attention.key_length": described["head_dim"],
        "attention.layer_norm_rms_epsilon": described["rms_norm_eps"],
        "attention.sliding_window": described["sliding_window"],
        "attn_logit_softcapping": described["attn_logit_softcapping"],
        "final_logit_softcapping": described["final_logit_softcapping"],
    }
    # 1 plus a norm is rounded, and these values are exact.
    weights = {k: np.round(x * 2**10) / 2**10 for k, x in tensors().items()}
    path = write(tmp_path / "model.gguf", weights, metadata, "gemma2")
    found = read(path, config)
    (tmp_path / "hf").mkdir()
    safetensors.numpy.save_file(weights, tmp_path / "hf" / "model.safetensors")
    assert_equal(found, read(tmp_path / "hf", config))


# -- Metadata --------------------------------------------------------------------------------------


def test_config_of_gemma_3(tmp_path):
    path = write(tmp_path / "model.gguf", model_tensors())
    found = gguf.config(path)
    local, everywhere = "sliding_attention", "full_attention"
    assert found == {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "hidden_size": 64,
        "num_hidden_layers": 7,
        "intermediate_size": 96,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "vocab_size": ROWS,
        "max_position_embeddings": 131072,
        "query_pre_attn_scalar": 32,
        "sliding_window": 1024,
        "sliding_window_pattern": 6,
        "layer_types": [local, local, local, local, local, everywhere, local],
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
        "hidden_activation": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "torch_dtype": "float32",
    }


@pytest.mark.parametrize("name", [name for name in sizes.SIZES if name != "tiny"])
def test_config_of_each_size(name, tmp_path):
    """A file has the metadata of a size; llama.cpp leaves out what the size implies."""
    c = sizes.SIZES[name]
    metadata = {
        "context_length": 8192,
        "embedding_length": c.embed_dim,
        "block_count": c.num_layers,
        "feed_forward_length": c.hidden_dim,
        "attention.head_count": c.num_heads,
        "attention.head_count_kv": c.num_kv_heads,
        "attention.key_length": c.head_dim,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "attention.sliding_window": c.sliding_window_size,
    }
    if c.generation == 2:
        metadata |= {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    if c.global_scale_factor != 1:
        metadata |= {"rope.scaling.type": "linear", "rope.scaling.factor": c.global_scale_factor}
    arch = f"gemma{c.generation}"
    found = gguf.config(write(tmp_path / "model.gguf", model_tensors(), metadata, arch))
    expected = hugging_face.describe(c) | {"vocab_size": ROWS}
    assert {key: found[key] for key in expected} == expected


# -- The tokenizer ---------------------------------------------------------------------------------

TEXTS = (
    "The quick  brown fox\tjumps   over\n\n\nthe lazy dog 2024",
    "<start_of_turn>user\nWhat is 12 + 30?<end_of_turn>\n",
    " leading and trailing ",
    "naïve 日本 🦊 \x07",
    "<bos> and <unk> in a text <eos><pad><mask>",
    "                                         far",
)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Trains a tokenizer.model with the special tokens and the normaliser of Gemma 3's."""
    sentencepiece = pytest.importorskip("sentencepiece")
    spaces = ["\u2581" * n for n in range(2, 32)]
    symbols = ["<mask>", "[multimodal]", "<unused0>", "<start_of_turn>", "<end_of_turn>"]
    path = sentencepieces.train(
        tmp_path_factory.mktemp("tokenizer"),
        (*TEXTS[:3], "user", "model", "naïve"),
        [*symbols, *("\n" * n for n in range(1, 5)), "\t", *spaces],
        vocab_size=450,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        allow_whitespace_only_pieces=True,
    )
    return sentencepiece.SentencePieceProcessor(model_file=path)


def converted(original):
    """Tokens, types and scores of a tokenizer as llama.cpp's converter writes them."""
    tokens, types, scores = [], [], []
    for i in range(original.vocab_size()):
        piece, kind, score = original.id_to_piece(i), NORMAL, original.get_score(i)
        if original.is_byte(i):
            kind = BYTE
        elif original.is_unknown(i) or original.is_control(i) or piece[0] in "<[":
            # Hugging Face's tokenizer calls these special, but the one in brackets.
            kind, score = USER_DEFINED if piece[0] == "[" else CONTROL, -1000.0
        elif not piece.strip("\u2581\n\t") and piece != "\u2581":
            kind, score, piece = USER_DEFINED, -1000.0, piece.replace("\u2581", " ")
        tokens.append(piece)
        types.append(kind)
        scores.append(score)
    return tokens, types, scores


def test_the_tokenizer_comes_back(original, tmp_path):
    import sentencepiece

    tokenizer = converted(original)
    assert CONTROL in tokenizer[1] and USER_DEFINED in tokenizer[1] and BYTE in tokenizer[1]
    path = write(tmp_path / "model.gguf", model_tensors(), tokenizer=tokenizer)
    gguf.write_tokenizer(path, tmp_path / "tokenizer.model")
    found = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert found.vocab_size() == original.vocab_size()
    for i in range(found.vocab_size()):
        for what in ("id_to_piece", "get_score", "is_byte", "is_unknown", "is_control"):
            assert getattr(found, what)(i) == getattr(original, what)(i), (i, what)
    for name in ("bos_id", "eos_id", "pad_id", "unk_id"):
        assert getattr(found, name)() == getattr(original, name)()
    for text in TEXTS:
        ids = original.encode(text)
        assert found.encode(text) == ids
        assert found.decode(ids) == original.decode(ids) == text
    assert found.piece_to_id("<start_of_turn>") in found.encode(TEXTS[1])


def test_no_tokenizer_and_another_one(original, tmp_path):
    path = write(tmp_path / "none.gguf", model_tensors())
    with pytest.raises(CheckpointError, match="no sentencepiece tokenizer") as error:
        gguf.write_tokenizer(path, tmp_path / "tokenizer.model")
    assert_one_line(error, str(path), "tokenizer.model")
    tokens, types, scores = converted(original)
    tokenizer = (["<s>" if token == "<bos>" else token for token in tokens], types, scores)
    path = write(tmp_path / "other.gguf", model_tensors(), tokenizer=tokenizer)
    with pytest.raises(CheckpointError, match="no token '<bos>'") as error:
        gguf.write_tokenizer(path, tmp_path / "tokenizer.model")
    assert_one_line(error, str(path))
    assert not (tmp_path / "tokenizer.model").exists()


# -- Bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [gguf.tensors, gguf.config])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04 an archive", "begins with b'PK"),
        (b"", "ends before its header does"),
        (b"GGUF\x01\0\0\0", "version 1 where versions 2 and 3 are known"),
        (b"GGUF\x03\0\0\0" + struct.pack("<QQ", 1, 2**60), "ends before its header does"),
    ],
)
def test_what_is_no_gguf(call, content, message, tmp_path):
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        call(tmp_path / "model.gguf")
    assert_one_line(error, str(tmp_path / "model.gguf"), message)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError) as error:
        gguf.tensors(tmp_path / "model.gguf")
    assert_one_line(error, "model.gguf cannot be read (No such file or directory)")


def test_a_truncated_file(tmp_path):
    path = write(tmp_path / "model.gguf", model_tensors())
    whole = path.read_bytes()
    path.write_bytes(whole[:-64])
    with pytest.raises(CheckpointError) as error:
        gguf.tensors(path)
    # The last tensor is a vector, which the writer pads.
    assert_one_line(error, f"truncated: it has {len(whole) - 64:,} bytes", "download it again")
    for length in range(4, 1000, 37):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError) as error:
            gguf.tensors(path)
        assert_one_line(error, "ends before its header does")


def test_another_architecture(tmp_path):
    path = write(tmp_path / "model.gguf", {}, arch="llama")
    with pytest.raises(CheckpointError) as error:
        gguf.config(path)
    assert_one_line(error, "architecture 'llama'; expected gemma2 or gemma3")


def test_one_of_several_parts(tmp_path):
    path = write(tmp_path / "model.gguf", model_tensors(), METADATA | {"split.count": 3})
    with pytest.raises(CheckpointError) as error:
        gguf.tensors(path)
    assert_one_line(error, "one of 3 parts", "llama-gguf-split --merge")


def test_missing_keys_and_tensors(tmp_path):
    without = {key: x for key, x in METADATA.items() if key != "block_count"}
    with pytest.raises(CheckpointError) as error:
        gguf.config(write(tmp_path / "a.gguf", model_tensors(), without))
    assert_one_line(error, "no key gemma3.block_count")
    with pytest.raises(CheckpointError) as error:
        gguf.config(write(tmp_path / "b.gguf", layer_tensors(0)))
    assert_one_line(error, "no token_embd.weight")
    with pytest.raises(CheckpointError) as error:
        gguf.tensors(write(tmp_path / "c.gguf", {"blk.0.ssm.weight": np.ones((2, 2))}))
    assert_one_line(error, "'blk.0.ssm.weight', which neither Gemma 2 nor Gemma 3 has")


def test_an_unknown_quantisation(tmp_path):
    path = write(tmp_path / "model.gguf", model_tensors())
    content = bytearray(path.read_bytes())
    # The type follows the name, the number of dimensions and two dimensions.
    place = content.index(b"token_embd.weight") + len("token_embd.weight") + 4 + 2 * 8
    for number, message in ((999, "number 999"), (TYPE.Q8_K, "quantised as Q8_K")):
        content[place : place + 4] = struct.pack("<I", number)
        path.write_bytes(content)
        with pytest.raises(CheckpointError) as error:
            gguf.tensors(path)
        assert_one_line(error, "'token_embd.weight'", message, "Q8_0")


def test_a_missing_package(tmp_path, monkeypatch):
    path = write(tmp_path / "model.gguf", model_tensors())
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(CheckpointError) as error:
        gguf.tensors(path)
    assert_one_line(error, 'pip install -e ".[gguf]"')


def test_a_checkpoint_and_its_tokenizer_by_path(original, tmp_path):
    """What model.checkpoint and model.tokenizer take."""
    path = write(tmp_path / "model.gguf", model_tensors(), tokenizer=converted(original))
    # The smallest size is as deep and as wide.
    assert checkpoints.size(str(path)) == "tiny"
    with pytest.raises(CheckpointError) as error:
        checkpoints.find(str(path), sizes.SIZES["gemma3_270m"])
    assert_one_line(error, str(path), "is of the size tiny")
    found = tokenizers._read(str(path))
    assert [found.encode(text) for text in TEXTS] == [original.encode(text) for text in TEXTS]


def test_an_export_writes_the_tokenizer_of_the_file(original, tmp_path):
    import sentencepiece

    path = write(tmp_path / "model.gguf", model_tensors(), tokenizer=converted(original))
    params = read(hf_golden.PATH, hf_golden.CONFIGS["9b"])
    out = epath.Path(tmp_path / "out")
    hugging_face_export.write(out, params, hf_golden.CONFIGS["9b"], tokenizer=str(path))
    found = sentencepiece.SentencePieceProcessor(model_file=str(out / "tokenizer.model"))
    assert [found.encode(text) for text in TEXTS] == [original.encode(text) for text in TEXTS]
