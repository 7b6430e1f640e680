"""What TransformerLens itself gets wrong for bidirectional, shifted or post-norm models: five lines each, which run.

`dlm` is tiny-dlm, `dream` and `bert` are the models of the page, `tokens` a row of token ids. The last line of each is
what it shows: the number of TransformerLens, and the right one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from compose.cases import case


@dataclass(frozen=True)
class Wrong:
    """A reproduction.

    Attributes:
        title: What is wrong.
        cause: Why, and what sinklens does about it.
        code: Five lines; the last is a tuple of TransformerLens's number and the right one.
    """

    title: str
    cause: str
    code: str


WRONG = (
    Wrong(
        "Next-token losses of logits whose rows are about their own token",
        "`lm_cross_entropy_loss` and `lm_accuracy` get tensors and score row i against token i + 1. They see no model, "
        "so sinklens cannot refuse; it refuses `dlm.loss_fn`, `return_type='loss'` and everything that asks for those.",
        """
from transformer_lens.utilities import lm_cross_entropy_loss

logits = dlm(tokens)
own = torch.nn.functional.cross_entropy(logits[0], tokens[0])
float(lm_cross_entropy_loss(logits, tokens)), float(own)
""",
    ),
    Wrong(
        "The head detector looks back only",
        "Its patterns are lower triangles, a pattern of your own must be one, too, and a head that attends to the "
        'later copy of a token is no "duplicate_token_head". sinklens refuses `detect_head` where attention looks '
        "ahead; sum `cache['pattern', layer]` over the places that you mean.",
        """
from transformer_lens import head_detector

copies = head_detector.get_duplicate_token_head_detection_pattern(dlm.to_tokens("dolko xe dolko"))
first, other = 1, 3  # where dolko stands, behind BOS
float(copies[first, other]), 1.0
""",
    ),
    Wrong(
        "Logit attribution without the weight of the final norm",
        "Before weights are folded, `tokens_to_residual_directions` gives columns of the unembedding, and attributions "
        "sum to another number than the logit. sinklens multiplies by the norm's weight, so they sum to it.",
        """
from transformer_lens.model_bridge import TransformerBridge

logits, cache = dlm.run_with_cache(tokens)
parts = cache.apply_ln_to_stack(cache.decompose_resid()).sum(0)
theirs = parts @ TransformerBridge.tokens_to_residual_directions(dlm, 7)
float(theirs[0, 3]), float(logits[0, 3, 7])
""",
    ),
    Wrong(
        "Logit lens and attribution of a model whose logits are shifted",
        "Dream predicts position i from the stream at i - 1; TransformerLens reads it at i. sinklens refuses "
        "`logit_lens`, `logit_attrs` and `direct_logit_attribution` there; by hand, row i of this product is about "
        "position i + 1.",
        """
logits, cache = dream.run_with_cache(tokens)
stream = cache.accumulated_resid(apply_ln=True)[-1]
read = stream @ dream.W_U
assert torch.allclose(read[:, :-1], logits[:, 1:], atol=1e-3)
float(read[0, 3, 7]), float(logits[0, 3, 7])
""",
    ),
    Wrong(
        "Decompositions of a stream that is normalised after each sum",
        "In BERT what layers add is normalised with the stream, so parts do not sum to it; TransformerLens adds them "
        "up, and the positions twice (`hook_embed` is behind them). sinklens's cache refuses sums, remainders and "
        "`apply_ln` there.",
        """
from transformer_lens import ActivationCache

cache = bert.run_with_cache(tokens)[1]
theirs = ActivationCache(cache.cache_dict, bert).decompose_resid().sum(0)
float(theirs[0, 3].norm()), float(cache["resid_post", 1][0, 3].norm())
""",
    ),
    Wrong(
        "CircuitsVis hides the upper triangle",
        "`attention_heads` draws causal patterns unless told otherwise: what a query gives to later keys is not shown. "
        "`sinklens.plots.circuitsvis` says mask_upper_tri=False. Attention that would be left, and all of it:",
        """
pattern = dlm.run_with_cache(tokens)[1]["pattern", 1][0, 0]
shown = pattern.tril()
float(shown.sum()), float(pattern.sum())
""",
    ),
)


@torch.no_grad()
def shown(wrong: Wrong) -> tuple[float, float]:
    """Run a reproduction: TransformerLens's number, and the right one."""
    names: dict[str, Any] = {
        "torch": torch, "tokens": case("Dream").tokens,
        "dlm": case("tiny-dlm").dlm, "dream": case("Dream").dlm, "bert": case("BERT").dlm,
    }  # fmt: skip
    *lines, last = wrong.code.strip().splitlines()
    exec("\n".join(lines), names)
    theirs, right = eval(last, names)
    return theirs, right
