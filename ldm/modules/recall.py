"""What a network recalls from one call to the next of a run, and what it leaves out of a call.

The keys and values of the words are the same in all steps of a run, so they are computed at its first: exactly, for no
more than their memory. The rest are shortcuts, which change the noise.
"""

from __future__ import annotations

from typing import Any, Dict, Optional, Tuple

from torch import Tensor

from ldm.modules.deep_cache import DeepCache
from ldm.modules.token_merging import TokenMerging


class Recall:
    """Of one run. `cache`: of the deep maps, None where all is computed; `merging`: of the tokens of this call."""

    def __init__(self, cache_interval: int = 1, merge_tokens: float = 0.0) -> None:
        self.cache = DeepCache(cache_interval) if cache_interval > 1 else None
        self.merging: Optional[TokenMerging] = None
        self._merge_tokens = merge_tokens
        self._words: Dict[Any, Tuple[Tensor, Tensor, Tensor]] = {}

    @property
    def is_exact(self) -> bool:
        """Whether the noise is what it would be without."""
        return self.cache is None and not self._merge_tokens

    def prepare(self, x: Tensor, t: float, rows: int) -> None:
        """Be ready for a call with x (B,C,h,w) at timestep t that gives so many rows of noise."""
        if self.cache is not None:
            self.cache.prepare(t, rows)
        if self._merge_tokens:
            self.merging = TokenMerging(self._merge_tokens, x.shape[2], x.shape[3], int(t))

    def keys_and_values(self, attention: Any, context: Tensor) -> Tuple[Tensor, Tensor]:
        """Of the words (B,L,D) for one attention: computed once, as long as the same tensor comes."""
        known = self._words.get(attention)
        if known is None or known[0] is not context:
            known = self._words[attention] = (context, *attention.keys_and_values(context))
        return known[1:]
