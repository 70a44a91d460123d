"""Tokenizer: the vocabulary in a GGUF file, written as the `tokenizer.json` that it came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptflow.errors import UnsupportedModel
from gptflow.models.files import write_json
from gptflow.models.gguf_fields import Fields

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # tokenizer.ggml.token_type
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's mark for a space


def write(folder: Path, fields: Fields, config: Mapping[str, Any]) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` into a model's folder.

    Raises:
        UnsupportedModel: the tokenizer is not of a kind that is converted.
    """
    from tokenizers import AddedToken, processors

    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    types: list[int] = fields["tokenizer.ggml.token_type"]
    kind = f"{fields['tokenizer.ggml.model']}/{fields.get('tokenizer.ggml.pre', '')}"
    if kind in ("gpt2/gpt-2", "gpt2/smollm"):
        tokenizer = _byte_level(fields, digits=kind == "gpt2/smollm")
    elif kind == "llama/default" and config["model_type"] == "gemma3_text":
        tokenizer = _gemma(fields)
    else:
        raise UnsupportedModel(
            f"{fields.file} has a tokenizer of the kind {kind!r}, which is not converted.",
            hint="Pull the model in its safetensors form.",
        )
    known = tokenizer.get_vocab(with_added_tokens=False)
    for wanted, add in (
        (_CONTROL, tokenizer.add_special_tokens),
        (_USER_DEFINED, tokenizer.add_tokens),
    ):
        add(
            [
                AddedToken(token, normalized=False)
                for token, kind in zip(tokens, types, strict=True)
                if kind == wanted and token in known
            ]
        )
    special = {
        name: tokens[number]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
        if (number := fields.get(f"tokenizer.ggml.{key}_token_id")) is not None
    }
    adds_bos = bool(fields.get("tokenizer.ggml.add_bos_token", False))
    if adds_bos:
        bos = special["bos"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, known[bos])]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        # Not the class of GPT-2: for that, transformers 5 replaces the file's pre-tokenizer,
        # and what is a number to Unicode but not 0-9 is split differently.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
        "add_bos_token": adds_bos,
        "chat_template": fields.get("tokenizer.chat_template"),
        **{f"{name}_token": token for name, token in special.items()},
    }
    kept = {key: value for key, value in settings.items() if value is not None}
    write_json(folder / "tokenizer_config.json", kept)


def _byte_level(fields: Fields, *, digits: bool) -> Tokenizer:
    """GPT-2's byte-level BPE; `digits` are split one by one before it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {token: number for number, token in enumerate(fields["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
        if digits
        else words
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _gemma(fields: Fields) -> Tokenizer:
    """Gemma's SentencePiece BPE: spaces are marked, and unknown characters fall back to bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    types = fields["tokenizer.ggml.token_type"]
    tokens = [
        # Runs of spaces, which other tokens may be merged with, are stored unmarked.
        _SPACE * len(token) if token.isspace() and not token.strip(" ") else token
        for token in fields["tokenizer.ggml.tokens"]
    ]
    # Control tokens must not come out of a merge: then text could spell them. What the user
    # of SentencePiece defined is found before any merge.
    merged = [
        token
        for token, type_ in zip(tokens, types, strict=True)
        if type_ == _NORMAL or not token.strip(_SPACE)
    ]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=_merges(merged, vocabulary),
            unk_token=tokens[fields["tokenizer.ggml.unknown_token_id"]],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", _SPACE)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


def _merges(tokens: Sequence[str], vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """The merges that make `tokens`, first to last, of pieces in the vocabulary.

    SentencePiece keeps no list of merges: it joins whatever two neighbours make the token that
    was learnt first. Gemma's tokens are in the order in which they were learnt.
    """
    return [
        (token[:cut], token[cut:])
        for token in tokens
        for cut in range(len(token) - 1, 0, -1)
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    ]
