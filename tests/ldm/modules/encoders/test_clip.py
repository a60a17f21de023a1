"""The text transformer: equal to the reference library on the same weights, and named as the files name it."""

from __future__ import annotations

import pytest
import torch

from ldm.errors import ConfigError
from ldm.modules.encoders.clip import CLIPTextModel, TextDimensions

TINY = TextDimensions(vocab_size=100, width=32, layers=2, heads=2, context=16)
SIZES = [
    TINY,
    TextDimensions(vocab_size=1000, width=96, layers=3, heads=6),
    TextDimensions(vocab_size=500, width=128, layers=1, heads=1, context=40, activation="gelu"),
    TextDimensions(vocab_size=300, width=768, layers=4, heads=12),
]


def random_model(dimensions: TextDimensions) -> CLIPTextModel:
    """Weights far from their initial values, so that a bias or a norm left out would show."""
    torch.manual_seed(0)
    model = CLIPTextModel(dimensions)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model.eval()


def random_tokens(dimensions: TextDimensions, batch: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, dimensions.vocab_size, (batch, dimensions.context), generator=generator)


def reference_model(dimensions: TextDimensions, weights: dict) -> torch.nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPTextConfig(
        vocab_size=dimensions.vocab_size,
        hidden_size=dimensions.width,
        intermediate_size=4 * dimensions.width,
        num_hidden_layers=dimensions.layers,
        num_attention_heads=dimensions.heads,
        max_position_embeddings=dimensions.context,
        hidden_act=dimensions.activation,
        bos_token_id=dimensions.vocab_size - 2,
        eos_token_id=dimensions.vocab_size - 1,
        pad_token_id=dimensions.vocab_size - 1,
    )
    reference = transformers.CLIPTextModel(config).eval()
    if not any(name.startswith("text_model.") for name in reference.state_dict()):  # transformers 5
        weights = {name.replace("text_model.", "", 1): value for name, value in weights.items()}
    missing, unexpected = reference.load_state_dict(weights, strict=False)
    assert not missing
    assert all(name.endswith("position_ids") for name in unexpected)
    return reference


@pytest.mark.parametrize("dimensions", SIZES, ids=lambda d: f"{d.layers}x{d.width}-{d.activation}")
def test_equals_the_reference_on_the_same_weights(dimensions):
    model = random_model(dimensions)
    tokens = random_tokens(dimensions)
    with torch.no_grad():
        expected = reference_model(dimensions, model.state_dict())(tokens).last_hidden_state
        # Rows have unit variance after the final norm; float32 sums in another order differ by some 1e-6.
        torch.testing.assert_close(model(tokens), expected, atol=1e-5, rtol=0)


def test_a_token_depends_on_those_before_it_alone():
    model = random_model(TINY)
    tokens = random_tokens(TINY)
    changed = tokens.clone()
    changed[:, 9:] = (changed[:, 9:] + 1) % TINY.vocab_size
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])


def test_a_shorter_row_gives_the_head_of_a_longer_one():
    model = random_model(TINY)
    tokens = random_tokens(TINY)
    with torch.no_grad():
        # Matrix products of another height may sum in another order: float32 rounding.
        torch.testing.assert_close(model(tokens[:, :5]), model(tokens)[:, :5], atol=1e-5, rtol=0)


def test_rows_of_a_batch_do_not_mix():
    model = random_model(TINY)
    tokens = random_tokens(TINY)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens)[1:2], model(tokens[1:2]), atol=1e-5, rtol=0)


def test_names_and_shapes_are_those_of_a_checkpoint():
    shapes = {name: tuple(value.shape) for name, value in CLIPTextModel(TINY).state_dict().items()}
    width = TINY.width
    expected = {
        "text_model.embeddings.position_ids": (1, 16),
        "text_model.embeddings.token_embedding.weight": (100, width),
        "text_model.embeddings.position_embedding.weight": (16, width),
        "text_model.final_layer_norm.weight": (width,),
        "text_model.final_layer_norm.bias": (width,),
    }
    for layer in (f"text_model.encoder.layers.{number}." for number in range(2)):
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            expected[f"{layer}self_attn.{part}.weight"] = (width, width)
            expected[f"{layer}self_attn.{part}.bias"] = (width,)
        for part in ("layer_norm1.weight", "layer_norm1.bias", "layer_norm2.weight", "layer_norm2.bias"):
            expected[layer + part] = (width,)
        expected[f"{layer}mlp.fc1.weight"], expected[f"{layer}mlp.fc1.bias"] = (4 * width, width), (4 * width,)
        expected[f"{layer}mlp.fc2.weight"], expected[f"{layer}mlp.fc2.bias"] = (width, 4 * width), (width,)
    assert shapes == expected


def test_position_ids_are_kept_as_counting_integers():
    ids = CLIPTextModel(TINY).half().state_dict()["text_model.embeddings.position_ids"]
    assert torch.equal(ids, torch.arange(16).unsqueeze(0))


def test_the_default_size_is_that_of_sd_v1():
    """123.06 M parameters; built on the meta device, where nothing is drawn or stored."""
    try:
        with torch.device("meta"):
            model = CLIPTextModel(TextDimensions())
    except AttributeError:
        pytest.skip("this torch cannot build on the meta device")
    assert all(value.is_meta for value in model.state_dict().values())
    assert sum(parameter.numel() for parameter in model.parameters()) == 123_060_480


def test_a_fresh_model_neither_fades_nor_explodes_with_depth():
    torch.manual_seed(0)
    model = CLIPTextModel(TextDimensions(vocab_size=200, width=64, layers=24, heads=4))
    tokens = torch.randint(0, 200, (4, 77))
    hidden = model.text_model.encoder(model.text_model.embeddings(tokens))
    assert 0.1 < float(hidden.detach().std()) < 10


def test_every_parameter_gets_a_gradient():
    model = CLIPTextModel(TINY)
    model(random_tokens(TINY)).square().mean().backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 100, "heads": 3}, "width of the text encoder must be a multiple of heads=3, got 100"),
        ({"layers": 0}, "layers of the text encoder must be at least 1, got 0"),
        ({"activation": "relu"}, "activation of the text encoder must be gelu or quick_gelu, got 'relu'"),
    ],
)
def test_dimensions_that_cannot_be_built_are_refused(fields, message):
    with pytest.raises(ConfigError) as caught:
        TextDimensions(**fields)
    assert str(caught.value) == message
