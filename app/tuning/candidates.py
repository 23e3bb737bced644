"""What a run with a budget tries: prompts that differ in kind, start and learning rate, the most promising first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from app.task_prompt import PromptKind
from app.tuning.config import Init
from app.tuning.plan import TuningPlan
from app.tuning.search import Search
from app.tuning.templates import written_candidates

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from app.model.backbone import Backbone

Candidate: TypeAlias = Mapping[str, Any]
"""Values by hyperparameter; the configuration says the rest."""
NUM_LARGE_PARAMETERS: Final = 50_000_000
"""Of a backbone from which on keys and values alone are worth their time.

On SmolLM2-135M, with budgets of 10 and 20 minutes on two cores, sampled embeddings were the first to be dropped on
three of three data sets (research/LOG.md); on the demo model of 4 million they win.
"""


def default_candidates(
    init_text: str, num_text_tokens: int, *, has_labels: bool, is_large: bool = False, rate_factor: float = 1.0
) -> tuple[Candidate, ...]:
    """The keys and values of a written prompt come first: on a model that understands it they start where the prompt
    is, and every layer learns (Li and Liang 2021; Eyuboglu et al. 2025). On a small model sampled embeddings do better,
    and many of them fit into a budget.

    Args:
        init_text: the written prompt; empty if there is none.
        num_text_tokens: its length.
        is_large: whether the backbone has NUM_LARGE_PARAMETERS or more.
        rate_factor: of all learning rates.
    """
    rates = (0.01, 0.004, 0.025) if is_large else (0.01, 0.004)
    text: Candidate = {"init": Init.TEXT, "init_text": init_text, "num_virtual_tokens": num_text_tokens}
    written: list[Candidate] = [{"kind": PromptKind.KV, **text, "learning_rate": rate} for rate in rates if init_text]
    keys_values: list[Candidate] = [
        {"kind": PromptKind.KV, "init": Init.VOCAB, "learning_rate": rate} for rate in (0.01, 0.03)
    ]
    sampled: list[Candidate] = [
        {"kind": PromptKind.EMBEDDINGS, "init": init, "learning_rate": rate, "num_virtual_tokens": length}
        for length in (20, 50)
        for rate in (0.1, 0.3, 0.03)
        for init in (Init.VOCAB, *([Init.LABELS] if has_labels else []))
    ]
    ordered = [*written, *keys_values, *sampled] if is_large else [*written, *sampled[:2], *keys_values, *sampled[2:]]
    return tuple({**each, "learning_rate": each["learning_rate"] * rate_factor} for each in ordered)


def with_written(plan: TuningPlan, tokenizer: PreTrainedTokenizerFast, *, has_template: bool) -> TuningPlan:
    """The plan with written prompts to start from, if it has a budget and does not continue from another prompt.

    Args: has_template: whether the user gave the plan's template.
    """
    if not plan.config.budget_s or plan.init_prompt is not None:
        return plan
    found = written_candidates(
        plan.columns,
        plan.labels,
        tokenizer,
        template=plan.template if has_template else None,
        text=plan.config.init_text or None,
        system=plan.template.system,
    )
    return replace(plan, written=found)


def fit_to_device(plan: TuningPlan, backbone: Backbone, *, has_template: bool, **asked: Any) -> TuningPlan:
    """The plan with the default budget of the backbone's device, unless it asks for a number of updates; and a search.

    Args: has_template: whether the user gave the plan's template. asked: see `Search.default`.
    """
    config = plan.config.with_budget(backbone.device.type)
    search = Search.asked(asked) if config.budget_s else Search.default(config, has_labels=bool(plan.labels), **asked)
    return with_written(replace(plan, config=config, search=search), backbone.tokenizer, has_template=has_template)
