"""The API pages show every public name, once, and the table of models every family and checkpoint."""

from __future__ import annotations

import inspect
import re

import pytest
from site_parts import DOCS, part

import sinklens as sl
from sinklens.models.families import FAMILIES

PAGES = part("api").pages()
NAMESPACES = part("api").NAMESPACES


def test_every_top_level_name_is_on_a_page() -> None:
    spaces = {name for name in sl.__all__ if inspect.ismodule(getattr(sl, name))}
    assert spaces <= set(NAMESPACES)
    listed = {name for names in part("api").TOP.values() for name in names}
    assert listed == set(sl.__all__) - spaces - {"__version__"}


@pytest.mark.parametrize("short", sorted(NAMESPACES))
def test_every_name_of_a_namespace_is_on_its_page(short: str) -> None:
    module = part("api").namespace(NAMESPACES[short])
    for name in part("api").public(module):
        assert f"{NAMESPACES[short]}.{name}" in PAGES[short]


def test_a_thing_is_described_once() -> None:
    described = re.findall(r"^\.\. auto(?:class|function):: (\S+)$", "\n".join(PAGES.values()), re.MULTILINE)
    assert len(described) == len(set(described)) > 200
    assert "sinklens.SinkRule" in described
    assert "sinklens.sinks.SinkRule" not in described


def test_the_page_of_the_api_lists_every_page() -> None:
    assert set(re.findall(r"made/api/(\w+)", (DOCS / "api.md").read_text(encoding="utf-8"))) == set(PAGES)


def test_the_table_of_models_has_every_family_and_checkpoint() -> None:
    rows = [line.split(" | ")[0].strip("| ") for line in part("models").page().splitlines() if line.startswith("|")]
    assert {family.name for family in FAMILIES} <= set(rows)
    assert {f"`{model.name}`" for family in FAMILIES for model in family.models} <= set(rows)


def test_what_a_family_was_compared_with_is_said_of_families_that_there_are() -> None:
    models = part("models")
    assert set(models.CHECKED) <= {family.name for family in FAMILIES}
    rest = {family.name for family in FAMILIES} - set(models.CHECKED)
    assert rest == {"SmolLM2-diffusion", "Llama", "Qwen2", "Qwen3", "Qwen3-MoE", "GPT-2", "BERT", "RoBERTa"}
