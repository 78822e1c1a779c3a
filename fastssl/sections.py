"""The sections of a configuration: `model`, `data` and `train`, each field with its sentence, its range and its source."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def option(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    source: str = "",
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
) -> Any:
    """A configuration field: its default, one sentence of meaning (with unit), what is allowed, and its source.

    Numbers lie in [least, most], or in (above, most]; they are always finite.
    """
    return field(
        default=default,
        metadata={"help": help, "choices": choices, "source": source, "least": least, "most": most, "above": above},
    )


@dataclass(frozen=True)
class ModelConfig:
    name: str = option(
        "glyph_clip",
        "network: glyph_clip, wrn-28-2, timm:NAME, open_clip:ARCH[/TAG], transformers:NAME_OR_FOLDER, package.module:factory ...",
    )
    weights: str | None = option(None, "safetensors file, 'random', or nothing for the network's own weights")
    img_size: int | None = option(None, "side of the image that a timm vision transformer is built for, in pixels", least=1)
    patch_size: int | None = option(None, "side of a patch that a timm vision transformer is built with, in pixels", least=1)
    dropout: float = option(
        0.0, "probability that training drops a feature before the head", source="Noisy Student: 0.5", least=0, most=0.99
    )
    encoder_dropout: float | None = option(
        None, "dropout within an encoder of transformers:NAME while it trains; the checkpoint's own if not said", least=0, most=0.9
    )
    drop_path: float = option(0.0, "share of the last block's branches that training drops, less before it (timm)", least=0, most=0.99)
    normalise: str = option(
        "network", "constants that images are normalised by: the network's own or the data set's", choices=("network", "data")
    )
    tune: str = option(
        "full",
        "which weights train: full, linear, lp_ft, last_k, bias, bn, or vpt_deep, vpt_shallow, vpt_last, lora, adapter, adaptformer, ssf, "
        "joined by + where they combine",
    )
    partial: int | None = option(
        None, "only the last so many blocks get adapters or train (last_k); all if not said, 1 for last_k", least=1
    )
    lp_share: float = option(
        0.5,
        "share of the run's steps in which the heads alone train, before everything does (lp_ft)",
        source="the two stages: Kumar et al. 2022; the share: ours",
        above=0,
        most=0.99,
    )
    prompts: int = option(
        50, "prompt vectors before each block (vpt_deep) or before one (vpt_shallow, vpt_last)", source="FineSSL code: 50", least=1
    )
    lora_rank: int = option(16, "rank of the updates of query and value maps (lora)", source="FineSSL code: 8 or 16", least=1)
    adapter_rank: int = option(8, "width of the bottleneck on the MLP's output (adapter)", source="FineSSL code: 8", least=1)
    adaptformer_rank: int = option(64, "width of the bottleneck beside the MLP (adaptformer)", source="FineSSL code: 64", least=1)
    adaptformer_form: str = option("parallel", "where adaptformer's bottleneck sits", choices=("parallel", "sequential"))
    adapter_scale: float = option(0.1, "factor on the output of adapter and adaptformer", source="FineSSL code: 0.1")
    head: str = option(
        "linear",
        "classifier: plain linear, cosine with a learnable scale, or linear on a hidden layer with batch-norm and ReLU (projected)",
        source="projected: SimCLRv2, which fine-tunes from its projection's first layer",
        choices=("linear", "cosine", "projected"),
    )
    head_width: int | None = option(None, "width of a projected head's hidden layer; the features' own if not said", least=1)
    head_init: str = option(
        "random",
        "start of a head's weight: random unit rows, or the text tower's features of the class names",
        choices=("random", "text"),
    )
    batchnorm_momentum: float | None = option(
        None, "share of a new batch in batch-norm's running statistics; the network's own if not said (wrn: 0.001)", above=0, most=1
    )
    head_scale: float = option(1 / 0.07, "start of a cosine head's learnable scale", source="FineSSL code: 1/0.07", above=0)


@dataclass(frozen=True)
class DataConfig:
    name: str = option(
        "digits",
        "digits (built in), a published set (cifar10, cifar100, svhn, stl10, fashion_mnist, food101, flowers102, eurosat, pcam), "
        "a folder of images, or a table of texts (.csv, .tsv, .parquet, .jsonl)",
    )
    root: str | None = option(None, "folder that holds the published sets; $FASTSSL_DATA, else fastssl/data in the user's cache")
    extra: bool = option(False, "svhn: the extra part too, unlabelled")
    extra_unlabelled: str | None = option(
        None, "more unlabelled images from elsewhere: a folder, at any depth, or a CSV with a column path; test images stay what they are"
    )
    labels: str | None = option(None, "labels.csv with columns path,label; images that it does not name are unlabelled")
    test: str | None = option(None, "test images: a folder with a sub-folder a class, or a CSV with columns path,label")
    labels_per_class: int | None = option(None, "labelled images of each class")
    label_fraction: float | None = option(None, "share of each class that is labelled, in (0, 1]")
    labels_total: int | None = option(None, "labelled images in all")
    sampling: str = option(
        "balanced",
        "who is labelled: as many of each class by the seed (balanced), by the seed alone (uniform), or the first of each class in file "
        "order for any seed (first)",
        source="FineSSL code: first",
        choices=("balanced", "uniform", "first"),
    )
    imbalance: float | None = option(
        None,
        "labels of the first class over those of the last, falling geometrically between; --labels-per-class is the first class's number",
        source="USB code: 10 to 150",
        least=1,
    )
    imbalance_unlabelled: float | None = option(
        None, "the same ratio for unlabelled images; negative turns the order of classes round", source="USB code: 1 to 150, -100"
    )
    head_unlabelled: int | None = option(
        None,
        "unlabelled images of the largest class, beside data.imbalance_unlabelled; all that are not labelled if not said",
        source="USB code: 3000 and 4000 (CIFAR-10)",
        least=1,
    )
    split: str | None = option(None, "split.csv that says who is labelled, unlabelled and test")
    holdout: float | None = option(None, "share of the labelled images kept back as the test part, in (0, 1)")
    foundation_labels: str | None = option(
        None, "CSV with columns id,label and perhaps confidence: a foundation model's labels of the set (fastssl pseudolabel writes one)"
    )
    descriptions: str | None = option(
        None,
        "CSV with columns label,description, several rows a class allowed: what classes are called where a run on texts makes foundation "
        "labels itself; their names if left out",
    )
    foundation_noise: float = option(
        0.0, "share of the foundation labels that another class replaces, drawn by the seed, for experiments", least=0, most=1
    )
    label_noise: float = option(
        0.0, "share of the training labels that are drawn anew, by the seed, for experiments with noisy labels", least=0, most=1
    )
    label_noise_kind: str = option(
        "symmetric",
        "what they are drawn from: all classes, the true one among them (symmetric), the other classes (other), or each class's most alike "
        "one, elsewhere the next (asymmetric)",
        source="symmetric, asymmetric: DivideMix code",
        choices=("symmetric", "other", "asymmetric"),
    )
    noisy_labels: str | None = option(
        None, "CSV with columns id,label: labels that training is given in place of the set's own, which are kept for measuring"
    )
    size: int | None = option(None, "side of the square images in pixels; the network's own, else the data's", least=1)
    resize: int | None = option(
        None,
        "side to which images are brought before weak and strong views cut the image size out of them; the image size if not said",
        source="FineSSL code: 256 for 224",
        least=1,
    )
    interpolation: str | None = option(
        None,
        "how images are resized; the network's own way, else bicubic",
        choices=("bilinear", "bicubic"),
        source="FineSSL code: bilinear",
    )
    policy: str = option("fixmatch", "strong view's policy by name: of images, or of texts (tfidf, uniform, span_mask, back_translation)")
    text_column: str = option("text", "column of a table that holds the texts")
    label_column: str = option("label", "column of a table that holds their labels; blank is unlabelled")
    max_length: int | None = option(
        None,
        "tokens of a text that are read, special ones included; if not said, as many as hold 99 of 100 texts, and never more than the "
        "encoder takes",
        least=4,
    )
    lengths: int = option(3, "fixed lengths to which texts are padded at most: each is one captured step", least=1, most=8)
    token_dropout: float = option(0.0, "share of words that a weak view of a text drops", least=0, most=0.9)
    replace_rate: float = option(
        0.3, "share of words that a strong view of a text replaces or masks", source="UDA code: 0.1 to 0.9 by data set", least=0, most=1
    )
    max_bad: float = option(0.01, "share of undecodable images that ends the run")
    pipeline: str = option(
        "auto",
        "where images come from: decoded once into the device's memory (resident), decoded batch by batch from their files (dali), or the "
        "first where they fit into half of what is free (auto)",
        choices=("auto", "resident", "dali"),
    )
    workers: int | None = option(
        None, "threads that read and decode image files; the number of cores, at most 8, and half of them under dali on the CPU", least=1
    )


@dataclass(frozen=True)
class TrainConfig:
    steps: int = option(1000, "optimiser steps", least=1)
    batch_size: int = option(32, "labelled images a step, over all devices", least=1)
    ratio: int = option(7, "unlabelled images per labelled one", source="FixMatch: 7", least=1)
    min_labelled: int = option(
        0,
        "labelled images that a batch holds at least: fewer labels repeat in fresh views; the unlabelled images stay as many as a multiple "
        "of that allows",
        source="Arazo et al. 2019: 16 of 100",
        least=0,
    )
    lr: float = option(0.03, "peak learning rate", least=0)
    layer_decay: float = option(
        1.0,
        "factor on the learning rate from a block to the one before it: decay ** (L - l) for block l of L (from 0), one power more for "
        "the embeddings, the final norm as the last block, heads at the full rate; 1 is off",
        source="BEiT; USB's ViTs: 0.5 to 0.95",
        above=0,
        most=1,
    )
    optimizer: str = option("sgd", "torch's fused SGD or AdamW, or LARS", choices=("sgd", "adamw", "lars"))
    momentum: float = option(0.9, "momentum of sgd and lars", least=0, most=1)
    trust: float = option(0.001, "trust coefficient of lars", source="LARS; SimCLR code", above=0)
    nesterov: bool = option(True, "Nesterov momentum (sgd)")
    weight_decay: float = option(5e-4, "weight decay", least=0)
    decay_all: bool = option(False, "decay norms, biases and other vectors too")
    schedule: str = option(
        "fixmatch",
        "learning rate over the run: cos(7 pi t / 16 T), (1 + cos(pi t / T)) / 2, or constant",
        choices=("fixmatch", "cosine", "constant"),
    )
    schedule_period: int = option(1, "steps over which the schedule is held, as where it moves once an epoch", least=1)
    warmup: int = option(0, "steps of linear warm-up", least=0)
    accumulate: int = option(
        1, "pieces in which a step's batch is worked on, for less memory: gradients are added up, memory is written piece by piece", least=1
    )
    clip: float = option(0.0, "largest norm of the whole gradient; 0 is off", least=0)
    ema: float = option(0.0, "decay of the averaged network; 0 keeps none", least=0, most=1)
    amp: str = option("off", "mixed precision", choices=("off", "bf16", "fp16"))
    fp8: str = option(
        "off",
        "frozen linear layers of transformer blocks in float8, by torchao, beside --amp bf16: in the backward pass (backward), in both "
        "(full), or not; before training the gradient's cosine against bf16 must be at least 0.999",
        choices=("off", "backward", "full"),
    )
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    deterministic: bool = option(False, "deterministic algorithms everywhere")
    tf32: bool = option(False, "TF32 in fp32 matrix products and convolutions on CUDA")
    step_mode: str = option(
        "auto",
        "how a step runs: eager, compile (torch.compile), graph (compiled, and captured as one CUDA graph), or auto (graph on CUDA, eager "
        "on the CPU, and one mode down with a warning where one does not work)",
        choices=("auto", "eager", "compile", "graph"),
    )
    profile: bool = option(False, "measure where a step's time goes before training, and write profile/trace.json and profile/table.txt")
    weak_pass: str = option("auto", "forward of the views that need no gradient", choices=("auto", "joint", "separate"))
    seed: int = option(0, "seed of split, initial weights, order of samples and views", least=0, most=2**63 - 1)
    report_every: int = option(20, "steps between reports", least=1)
    eval_every: int | None = option(None, "steps between test evaluations, for the curve alone; a tenth of the run", least=1)
    save_every: int | None = option(None, "steps between checkpoints; a quarter of the run", least=1)
    keep: int = option(2, "checkpoints kept", least=1)
    stop_at: int | None = option(None, "stop and save after this step, to be resumed; schedules still span train.steps", least=1)
    max_skipped: int = option(10, "consecutive non-finite steps that end the run", least=1)


SECTIONS: dict[str, type] = {"model": ModelConfig, "data": DataConfig, "train": TrainConfig}
