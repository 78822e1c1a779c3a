"""Fused losses of semi-supervised learning, usable alone: `from fastssl.kernels import pseudo_label_loss`. Needs torch; on CUDA, triton."""

if __name__ == "kernels":
    # Someone with the repository's root on sys.path has asked for the package that transformers knows as `kernels`, or for us by a
    # name that is not ours. A second copy of these modules would have its own classes, so both names get the one copy.
    import importlib
    import sys

    sys.modules[__name__] = importlib.import_module("fastssl.kernels")
else:
    from ._dispatch import class_statistics, consistency_loss, cross_entropy, pseudo_label_loss, pseudo_label_loss_and_grad
    from .finessl_loss import FineSSLLoss
    from .method_losses import (
        AdaMatchLoss,
        FixMatchLoss,
        FlexMatchLoss,
        FreeMatchLoss,
        MeanTeacherLoss,
        PiModelLoss,
        SmoothFixMatchLoss,
        SoftMatchLoss,
        UDALoss,
    )
    from .modules import BalancedMarginCrossEntropy, ConsistencyLoss, PseudoLabelLoss
    from .reference import ClassStatistics, PseudoLabel

    __all__ = [
        "AdaMatchLoss",
        "BalancedMarginCrossEntropy",
        "ClassStatistics",
        "ConsistencyLoss",
        "FineSSLLoss",
        "FixMatchLoss",
        "FlexMatchLoss",
        "FreeMatchLoss",
        "MeanTeacherLoss",
        "PiModelLoss",
        "PseudoLabel",
        "PseudoLabelLoss",
        "SmoothFixMatchLoss",
        "SoftMatchLoss",
        "UDALoss",
        "class_statistics",
        "consistency_loss",
        "cross_entropy",
        "pseudo_label_loss",
        "pseudo_label_loss_and_grad",
    ]
