"""The embedder at the import path that configs name."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from ldm.errors import ConfigError, WeightsError
from ldm.modules.encoders import tokenizer as tokenizer_module
from ldm.modules.encoders.modules import FrozenCLIPEmbedder

SHIPPED = Path(__file__).resolve().parents[4] / "models/emoji-v1/tokenizer"
TINY = {"width": 32, "layers": 2, "heads": 2}


@pytest.fixture(scope="module")
def embedder():
    torch.manual_seed(0)
    return FrozenCLIPEmbedder(str(SHIPPED), dimensions=TINY)


def test_prompts_become_one_row_a_token(embedder):
    assert embedder.encode(["a cat", "", "a dog " * 100]).shape == (3, 77, 32)
    assert torch.equal(embedder(["a cat"]), embedder.encode(["a cat"]))


def test_max_length_sets_positions_and_rows():
    embedder = FrozenCLIPEmbedder(str(SHIPPED), max_length=20, dimensions=TINY)
    assert embedder.encode(["a cat"]).shape == (1, 20, 32)
    assert embedder.state_dict()["transformer.text_model.embeddings.position_ids"].shape == (1, 20)


def test_building_needs_no_tokenizer_and_encoding_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_module, "PROJECT_ROOT", tmp_path)
    monkeypatch.delenv("SDBATCH_CLIP", raising=False)
    monkeypatch.chdir(tmp_path)
    embedder = FrozenCLIPEmbedder(dimensions=TINY)
    with pytest.raises(WeightsError, match=r"a folder with vocab\.json and merges\.txt"):
        embedder.encode(["a cat"])
    embedder.use_tokenizer(SHIPPED)
    assert embedder.encode(["a cat"]).shape == (1, 77, 32)


def test_without_a_folder_of_ones_own_the_shipped_table_is_used(tmp_path, monkeypatch):
    monkeypatch.delenv("SDBATCH_CLIP", raising=False)
    monkeypatch.chdir(tmp_path)
    assert FrozenCLIPEmbedder(dimensions=TINY).count_tokens("a white ball") == 3


def test_what_does_not_fit_can_be_counted(embedder):
    assert embedder.count_tokens("cat " * 100) - embedder.tokenizer.room == 25


def test_freeze_stops_gradients_and_nothing_else_does(embedder):
    fresh = FrozenCLIPEmbedder(str(SHIPPED), dimensions=TINY)
    assert all(parameter.requires_grad for parameter in fresh.parameters())
    assert fresh.freeze() is fresh
    assert not fresh.training
    assert not any(parameter.requires_grad for parameter in fresh.parameters())


def test_tokens_go_where_the_weights_are(embedder):
    assert embedder.tokenize(["a cat"]).device == next(embedder.parameters()).device
    assert embedder.tokenize(["a cat"]).dtype == torch.int64


def test_a_used_embedder_can_be_sent_to_another_process(embedder):
    embedder.encode(["a cat"])
    copy = pickle.loads(pickle.dumps(embedder))
    assert torch.equal(copy.encode(["a cat"]), embedder.encode(["a cat"]))


def test_names_begin_as_in_a_checkpoint(embedder):
    assert {name.split(".")[0] + "." + name.split(".")[1] for name in embedder.state_dict()} == {
        "transformer.text_model"
    }


def test_a_tokenizer_that_knows_more_than_the_text_encoder_is_refused():
    embedder = FrozenCLIPEmbedder(dimensions={"vocab_size": 1000, "width": 32, "layers": 1, "heads": 2})
    with pytest.raises(WeightsError, match=r"has 49408 tokens, the text encoder 1000; name the folder of"):
        embedder.use_tokenizer(SHIPPED)


def test_unknown_dimensions_are_listed_together():
    with pytest.raises(ConfigError) as caught:
        FrozenCLIPEmbedder(dimensions={"width": 32, "depth": 2, "dim": 3})
    assert str(caught.value) == (
        "dimensions of FrozenCLIPEmbedder must be among vocab_size, width, layers, heads, activation; got depth, dim"
    )
