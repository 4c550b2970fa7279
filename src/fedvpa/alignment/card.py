"""The policy's model card, in the Hub's format: base model, data, method, metrics, limits, licence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

PAPERS = {
    "DPO (Rafailov et al. 2023)": "https://arxiv.org/abs/2305.18290",
    "LoRA (Hu et al. 2021)": "https://arxiv.org/abs/2106.09685",
    "FedVPA-GP (Koo, Kim, Jang, Ok 2026)": "https://arxiv.org/abs/2605.30873",
}


def model_card(result: Mapping[str, Any], table: str) -> str:
    """The card's text.

    Args:
        result: what ``alignment.json`` holds.
        table: the switching table as Markdown, or what stands in its place.
    """
    data, labels, training = result["data"], result["labels"], result["training"]
    config = result["config"]
    after = " after different examples" if config["candidates"]["demonstrations"] else ""
    sft = config["training"]["sft"]
    likelihood = f" with the chosen responses' likelihood (weight {sft})" if sft else ""
    header = ModelCardData(
        base_model=result["model"]["name"] if "/" in result["model"]["name"] else None,
        library_name="peft",
        pipeline_tag="text-generation",
        language="en",
        license="apache-2.0",
        tags=["fedvpa", "dpo", "trl", "lora", "preference-learning", "federated-learning"],
        model_name=f"fedvpa policy ({data['name']})",
        eval_results=_evaluated(result) or None,
    )
    conflict = labels["conflict_share"]
    conflict_text = "there is one latent only" if conflict is None else f"{conflict:.1%} of the labels conflict"
    lines = [
        "---",
        header.to_yaml(),
        "---",
        "",
        "# A language model that switches preferences",
        "",
        f"One LoRA adapter for {result['model']['name']}, conditioned on a latent z: under a user's z it answers"
        " as that user would like it. Use it with `fedvpa.alignment.policy.PersonalizedPolicy.from_pretrained(...)` or"
        " `fedvpa generate`; loaded by PEFT alone it lacks the latent's embedding.",
        "",
        "## Base model",
        "",
        f"{result['model']['name']}, {result['model']['dtype']}, fingerprint `{result['model']['fingerprint'][:16]}`,"
        " frozen.",
        "",
        "## Data",
        "",
        f"{data['training_prompts']} public prompts of `{data['source']}`, none of which a client of the selector's run"
        f" holds; {data['candidates']} candidates for each, written by the base model{after}"
        f" (at most {data['max_new_tokens']} tokens, {data['capped']:.1%} of them cut there)."
        " No client's data was used.",
        *[f"* {note}" for note in data["notes"]],
        "",
        "## Method",
        "",
        f"A frozen selector (`{result['selector']['method']}`, trained federated on `{data['name']}`) labelled the"
        f" candidates under {len(labels['latents'])} latents; {conflict_text}. From {labels['pairs']} pairs DPO (beta"
        f" {training['beta']}){likelihood} trained the adapter in {training['steps']} steps; the latent enters by"
        f" `{training['conditioning']}`. No rule and no person filtered the pairs.",
        "",
        *[f"* [{name}]({link})" for name, link in PAPERS.items()],
        "",
        "## Metrics",
        "",
        table,
        "",
        "## Limits",
        "",
        "* The policy wants what the selector wants; where the selector is wrong, so is the policy.",
        "* It can be no better than its base model, which is small, makes facts up and was not made safe by this.",
        "* A latent is inferred from a user's choices and says something about the user. Treat user files as personal.",
        "* Judged on the criteria of the table only, on prompts like those of training, at this length of answers.",
        *[f"* {note}" for note in result["notes"]],
        "",
        "## Licence",
        "",
        "The adapter is under the Apache License 2.0; the base model and the data keep theirs.",
        "",
    ]
    return "\n".join(lines)


def _evaluated(result: Mapping[str, Any]) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=result["data"]["name"],
            dataset_name=result["data"]["name"],
            metric_type="win_rate",
            metric_name=f"win rate against the base model on {cell['criterion']}, latent of {cell['latent']}",
            metric_value=round(cell["rate"], 4),
        )
        for cell in result["switching"]
        if cell["kind"] == "policy" and cell["latent"] == cell["criterion"]
    ]
