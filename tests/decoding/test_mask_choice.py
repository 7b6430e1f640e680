"""By default only the choice of the mask is forbidden: confidences are the official ones, with the mask in them."""

import pytest
import torch

import sinklens as sl
from sinklens import Plan, denoising_steps


def naive(probabilities: list[float], chosen: int, rule: str) -> float:
    """The official confidence in one position, from its formula."""
    p = torch.tensor(probabilities, dtype=torch.float64)
    if rule == "entropy":
        return float((p * (p + 1e-10).log()).sum())
    if rule == "margin":
        first, second = sorted(p.tolist(), reverse=True)[:2]
        return first - second
    return float(p[chosen])


@pytest.mark.parametrize("rule", ["low_confidence", "margin", "entropy", "maskgit_plus"])
@pytest.mark.parametrize("sampler", ["llada", "dream"])
def test_confidences_have_the_masks_probability_in_them(sampler: str, rule: str) -> None:
    dlm = sl.HookedDLM.from_pretrained("tiny-dlm")
    mask = dlm.ids.mask
    head = dlm.original_model.lm_head
    hook = head.register_forward_hook(lambda _m, _a, out: out.index_fill(-1, torch.tensor([mask]), 8.0))
    try:
        plan = Plan(new_tokens=6, steps=6, block_length=6, sampler=sampler, remasking=rule)
        for step in denoising_steps(dlm, [[5, 6, 7]], plan):
            p = step.logits[0].double().softmax(-1)
            assert float(p[:, mask].max()) > 0.02
            want = {}
            for place in step.canvas.masked[0].nonzero()[:, 0].tolist():
                ordered = p[place].argsort(descending=True).tolist()
                chosen = next(token for token in ordered if token != mask)
                assert int(step.predicted[0, place]) == chosen
                want[place] = naive(p[place].tolist(), chosen, rule)
                assert float(step.confidence[0, place]) == pytest.approx(want[place], abs=1e-5)
            committed = step.committed[0].nonzero()[:, 0].tolist()
            surest = sorted(want, key=lambda place: -want[place])
            assert committed == sorted(surest[: len(committed)])  # Dream's timesteps commit none at some steps
    finally:
        hook.remove()


def test_where_the_nucleus_is_only_the_mask_the_likeliest_other_token_is_chosen() -> None:
    dlm = sl.HookedDLM.from_pretrained("tiny-dlm")
    mask = dlm.ids.mask
    head = dlm.original_model.lm_head
    hook = head.register_forward_hook(lambda _m, _a, out: out.index_fill(-1, torch.tensor([mask]), 60.0))
    try:
        for temperature in (0.0, 1.0):
            plan = Plan(new_tokens=4, sampler="dream", remasking="entropy", temperature=temperature, top_p=0.5)
            for step in denoising_steps(dlm, [[5, 6, 7]], plan):
                likeliest = step.logits[0].index_fill(-1, torch.tensor([mask]), -1e9).argmax(-1)
                here = step.canvas.masked[0]
                assert step.predicted[0][here].tolist() == likeliest[here].tolist()
    finally:
        hook.remove()
