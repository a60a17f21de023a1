"""The text encoder of SD v1 at the import path that configs name: prompts to (B,77,D)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, List, Mapping, Optional, Sequence

import torch
from torch import Tensor, nn

from ldm.errors import ConfigError, WeightsError
from ldm.modules.encoders.clip import CLIPTextModel, TextDimensions
from ldm.modules.encoders.tokenizer import ClipTokenizer, find_tokenizer


class FrozenCLIPEmbedder(nn.Module):
    """Prompts to the last hidden state of CLIP's text transformer.

    version     a local folder with vocab.json and merges.txt; a hub id such as the default only names the model, and
                the usual places are searched (`tokenizer.places`) at the first prompt. Nothing is fetched.
    device      accepted because configs carry it; the embedder works on the device that it has been moved to.
    max_length  tokens a prompt is padded or cut to.
    dimensions  fields of `TextDimensions`, for text encoders that are not ViT-L/14.

    Weights are random until loaded, and trainable until `freeze` is called.
    """

    def __init__(
        self,
        version: str = "openai/clip-vit-large-patch14",
        device: Optional[str] = None,
        max_length: int = 77,
        dimensions: Optional[Mapping[str, Any]] = None,
    ) -> None:
        super().__init__()
        self.version = version
        self.max_length = max_length
        of_text = text_dimensions(max_length, dimensions or {})
        self.width = of_text.width  # D
        self._vocab_size = of_text.vocab_size
        self.transformer = CLIPTextModel(of_text)
        self._tokenizer: Optional[ClipTokenizer] = None

    @property
    def tokenizer(self) -> ClipTokenizer:
        """Found in the usual places at first use; `use_tokenizer` says otherwise. WeightsError where there is none."""
        return self._tokenizer or self.use_tokenizer(find_tokenizer(version=self.version))

    def use_tokenizer(self, folder: Path) -> ClipTokenizer:
        """Read the tokenizer from this folder, and keep it. WeightsError where it knows more than the text encoder."""
        tokenizer = ClipTokenizer(folder, context=self.max_length)
        if tokenizer.size > self._vocab_size:
            raise WeightsError(
                f"the tokenizer in {folder} has {tokenizer.size} tokens, the text encoder {self._vocab_size}; "
                "name the folder of the one that the model was trained with: --clip FOLDER, in a job clip=FOLDER"
            )
        self._tokenizer = tokenizer
        return tokenizer

    def count_tokens(self, text: str) -> int:
        """Tokens in the text; those beyond `tokenizer.room` (75 for SD v1) do not reach the model."""
        return self.tokenizer.count(text)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """B texts -> (B, max_length) int64 token ids, on the device of the weights."""
        device = self.transformer.text_model.embeddings.token_embedding.weight.device
        return torch.tensor(self.tokenizer.rows(texts), dtype=torch.int64, device=device)

    def forward(self, texts: Sequence[str]) -> Tensor:
        """B texts -> (B, max_length, D)."""
        hidden: Tensor = self.transformer(self.tokenize(texts))
        return hidden

    def encode(self, texts: Sequence[str]) -> Tensor:
        """B texts -> (B, max_length, D)."""
        encoded: Tensor = self(texts)
        return encoded

    def freeze(self) -> FrozenCLIPEmbedder:
        """Evaluation mode, no gradients."""
        return self.eval().requires_grad_(False)


def text_dimensions(max_length: int, given: Mapping[str, Any]) -> TextDimensions:
    """The dimensions that a config asks for; ConfigError lists what is unknown."""
    known: List[str] = [name for name in TextDimensions.__dataclass_fields__ if name != "context"]
    unknown = sorted(str(name) for name in given if name not in known)
    if unknown:
        raise ConfigError(
            f"dimensions of FrozenCLIPEmbedder must be among {', '.join(known)}; got {', '.join(unknown)}"
        )
    return TextDimensions(context=max_length, **given)
