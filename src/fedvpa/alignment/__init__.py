"""Stage 2 (method.md, section 8): one language model, conditioned on z, aligned by a frozen selector.

Needs the extra ``align`` (TRL, PEFT).
"""
