"""The model card of a selector: what it is, how it is used, and what it was trained with."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from fedvpa.selector_files import SelectorInfo

_TEXT = """---
{data}
---

# A preference selector

It tells which of two responses a given user prefers, and needs a few of the user's own judgements for that. It was
trained with `{method}` of [fedvpa](https://pypi.org/project/fedvpa/) {version}, without the
users' data in one place. The features come from `{backbone}`, which is not part of these files.

```python
import fedvpa

selector = fedvpa.Selector.from_pretrained("OWNER/NAME"{option})
ada = selector.infer_user([{{"prompt": "Hi", "chosen": "Hello!", "rejected": "What do you want?"}}])
selector.prefer("How are you?", "Fine.", "Fine, thank you very much for asking.", user=ada)
selector.reward_function(user=ada)  # for TRL's GRPOTrainer and others
```

| | |
| --- | --- |
| method | {method} |
| backbone | {backbone} |
| dimensions of the latent | {dim} |
| prototypes, or clusters | {clusters} |
| data | {source} |
| model | `{model}` |

## Limits

It knows the preferences of the people that it was trained with, on texts like theirs. A preference is not a judgement
of truth or of harm. What a user's latent tells about the user is not nothing: treat it like the judgements themselves.
"""


def card_of(info: SelectorInfo) -> ModelCard:
    """The card of a selector; it names no place on this machine."""
    config = info.config
    names = [Path(name).name if name.startswith((".", "/", "~")) else name for name in config.backbone.models]
    local = any(name.startswith((".", "/", "~")) for name in config.backbone.models)
    data = ModelCardData(
        library_name="fedvpa",
        license="apache-2.0",
        tags=["preference-learning", "federated-learning", "reward-model", info.method],
        base_model=None if local or "/" not in names[0] else names,
    )
    text = _TEXT.format(
        data=data.to_yaml(),
        method=info.method,
        version=info.version,
        backbone=", ".join(names),
        option=', backbone="FOLDER"' if local else "",
        dim=config.model.latent_dim,
        clusters=info.clusters,
        source=config.data.name,
        model=info.model_hash[:16],
    )
    return ModelCard(text)
