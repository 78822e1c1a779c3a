"""Methods by name. One literal table: a name, and where its class lives."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from ..pipelines.errors import ConfigError, unknown

if TYPE_CHECKING:
    from .base import Method

METHODS: dict[str, str] = {
    "supervised": "supervised:Supervised",
    "pseudo_label": "pseudo_label:PseudoLabel",
    "pi_model": "pi_model:PiModel",
    "temporal_ensembling": "temporal_ensembling:TemporalEnsembling",
    "mean_teacher": "mean_teacher:MeanTeacher",
    "adversarial": "adversarial:Adversarial",
    "vat": "vat:VAT",
    "ict": "ict:ICT",
    "uda": "uda:UDA",
    "mixmatch": "mixmatch:MixMatch",
    "remixmatch": "remixmatch:ReMixMatch",
    "fixmatch": "fixmatch:FixMatch",
    "spl": "spl:SmoothPseudoLabel",
    "flexmatch": "flexmatch:FlexMatch",
    "freematch": "freematch:FreeMatch",
    "softmatch": "softmatch:SoftMatch",
    "adamatch": "adamatch:AdaMatch",
    "dash": "dash:Dash",
    "comatch": "comatch:CoMatch",
    "simmatch": "simmatch:SimMatch",
    "debiaspl": "debiaspl:DebiasPL",
    "layermatch": "layermatch:LayerMatch",
    "finessl": "finessl:FineSSL",
    "self_training": "self_training:SelfTraining",
    "noisy_student": "noisy_student:NoisyStudent",
    "pl_mixup": "pl_mixup:PLMixup",
    "label_propagation": "label_propagation:LabelPropagation",
    "meta_pseudo_labels": "meta_pseudo_labels:MetaPseudoLabels",
    "simclr": "simclr:SimCLR",
    "simclrv2": "simclrv2:SimCLRv2",
    "dividemix": "dividemix:DivideMix",
    "sentaugment": "sentaugment:SentAugment",
    "semikd": "semikd:SemiKD",
    "zeromatch": "zeromatch:ZeroMatch",
    "pseudo_supervision": "pseudo_supervision:PseudoSupervision",
    "pl_feature": "pl_feature:LabelAsFeature",
    "zero_shot": "zero_shot:ZeroShot",
}


def find(name: str) -> type[Method]:
    """The class of a method by name, or of the user's own by "package.module:Class" (user.py).

    Raises:
        ConfigError: unknown name, with the nearest ones; or what the user's class lacks.
    """
    if ":" in name:
        from . import user

        return user.load(name)
    if name not in METHODS:
        raise ConfigError(unknown("method", name, METHODS))
    module, kind = METHODS[name].split(":")
    return getattr(importlib.import_module(f".{module}", __name__), kind)
