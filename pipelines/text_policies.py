"""Policies of strong views of texts by name.

| name | what it does | source |
|---|---|---|
| tfidf | words that say little give way to others of the set that say little | UDA's code, section 3.2 of Xie et al. (2020) |
| uniform | each word gives way, with probability `rate`, to any word of the set | UDA's code |
| span_mask | spans of words are masked, `rate` of all words | SpanBERT's geometric spans (Joshi et al. 2020), T5's mean of 3 words |
| back_translation | one of the row's columns text_aug_0, text_aug_1 ... instead of the text | UDA, made beforehand |

Names joined by + run one after another: `back_translation+tfidf`.
"""

from __future__ import annotations

from .errors import ConfigError, unknown
from .policies import POLICIES

TEXT_POLICIES = ("tfidf", "uniform", "span_mask", "back_translation")
REPLACING = ("tfidf", "uniform")  # these draw words of the set


def text_policy(name: str) -> tuple[str, ...]:
    """The steps of a policy, in their order: "back_translation+tfidf" -> ("back_translation", "tfidf").

    Raises:
        ConfigError: an unknown name, a policy of images, a step twice, or back_translation after another step.
    """
    steps = tuple(name.split("+"))
    for step in steps:
        if step in POLICIES:
            raise ConfigError(f"policy '{step}' is for images; those for texts are {', '.join(TEXT_POLICIES)}")
        if step not in TEXT_POLICIES:
            raise ConfigError(unknown("policy of texts", step, TEXT_POLICIES))
    if len(set(steps)) < len(steps):
        raise ConfigError(f"policy '{name}' names a step twice; name each once")
    if "back_translation" in steps[1:]:
        # A translation is another text: what an earlier step did to the first one would be lost.
        raise ConfigError(f"policy '{name}' takes a translation after another step; put back_translation first")
    return steps
