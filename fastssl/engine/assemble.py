"""From a configuration to the parts of a run: device, data, split, pipeline, method. Touches no run directory."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from .. import environment, models
from ..config import RunConfig
from ..kernels import _dispatch
from ..methods import find
from ..methods.base import Method
from ..models import Network, fp8
from ..pipelines import choice, label_noise, sources, splits, text_table
from ..pipelines.batch import Split, Views
from ..pipelines.errors import ConfigError, DataError, SetupError
from ..pipelines.imbalance import Imbalance
from ..pipelines.resident import ResidentPipeline
from ..pipelines.source import Source
from ..pipelines.text_resident import TextPipeline
from ..pipelines.text_source import TextSource
from . import given, networks, own_labels, teacher, texts
from .indexing import indexing
from .networks import SOFT_ORIGINS


@dataclass
class Parts:
    """What a run trains with. `config` is the resolved one: batch sizes fitted to the data."""

    config: RunConfig
    device: torch.device
    source: Source | TextSource
    split: Split
    pipeline: ResidentPipeline | TextPipeline  # or the one that streams images, which is of the first kind
    method: Method
    notes: list[str]  # what was decided, for the log
    warnings: list[str]  # what may not be as the user thinks
    own_labels: own_labels.Lines = ()  # foundation labels that the run made itself


def assemble(
    config: RunConfig,
    *,
    split: Split | None = None,
    encoder: nn.Module | None = None,
    source: TextSource | None = None,
    restored: bool = False,
    quiet: bool = False,
) -> Parts:
    """Loads the data, draws (or takes) the split, builds network and method, seeded by `train.seed` alone.

    Args:
        config: of the run.
        split: who is labelled; drawn as the configuration says if None.
        encoder: the user's own network (fastssl/models/user.py), in place of the one that `model.name` names; it is trained itself.
        source: a table in memory (pipelines/text_table.py), in place of the data that `data.name` names.
        restored: every weight is about to come from a checkpoint, so no file and no hub is asked for any.
        quiet: no bar on stderr while image files are opened.

    Raises:
        ConfigError, DataError, SetupError: what does not fit, before anything is written.
    """
    notes: list[str] = []
    device = choose_device(config.train.device, config.train.amp)
    check_kernels(device)
    method_class = find(config.method_name)
    config = networks.headed(config, method_class)
    if encoder is not None:
        name = f"{type(encoder).__module__}:{type(encoder).__qualname__}"
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, name=name))
    model = models.bare(config.model) if restored else config.model
    data = config.data
    # A preset's image size (named presets are "preset NAME") gives way to the network's own; a user's is tried on the network.
    soft = config.origins.get("data.size", "default").split()[0] in SOFT_ORIGINS
    wanted = models.describe(model, None if soft else data.size, encoder=encoder)
    if wanted.size is not None and data.size not in (None, wanted.size):
        notes.append(f"images of {wanted.size} pixels, as {config.model.name} wants them")
        data = dataclasses.replace(data, size=wanted.size)
    is_table = source is not None or text_table.is_table(data.name)
    texts.check(config, wanted, is_table)
    if not is_table:
        data = dataclasses.replace(data, interpolation=data.interpolation or wanted.interpolation)
    config = dataclasses.replace(config, data=data)
    if data.name not in sources.NAMES:
        choice.demand(data.pipeline)
    if source is None:
        with indexing(quiet) as progress:
            # Smaller images stay small in memory: the pipeline enlarges each batch.
            source = sources.configured(data, size=wanted.size, enlarge=False, room=room(device), progress=progress)
    # The choice is kept with the run: a resume on a machine with other memory must read the same pixels.
    data = dataclasses.replace(data, pipeline=source.choice.name)
    config = dataclasses.replace(config, data=data)
    config = texts.fitted(config, source) if is_table else config
    notes.append(f"pipeline: {source.choice.name} ({source.choice.reason})")
    if source.extra:
        notes.append(f"extra {source.samples}, unlabelled: {source.extra:,} of {data.extra_unlabelled}")
    size = None if is_table else wanted.size or data.size or source.images.shape[-1]
    if wanted.mean is not None and config.model.normalise == "network":
        source = dataclasses.replace(source, mean=wanted.mean, std=wanted.std)
    warnings = []
    if source.quarantine:
        lost = "are empty" if is_table else "cannot be decoded"
        warnings.append(f"{len(source.quarantine)} {source.samples} {lost} and are left out (quarantine.csv lists them)")
    if split is None:
        split = draw_split(config, source, restored=restored, note=notes.append)
    warnings += source.warnings
    if len(source.classes) < 2:
        raise DataError(f"{data.name} has {len(source.classes)} class; a classifier needs at least two")

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        report = models.Report()
        untuned = copy.deepcopy(encoder)  # tuning changes it in place, and further networks are tuned for themselves
        network = models.build(
            model,
            source.classes,
            size=size,
            encoder=encoder,
            report=report,
        )
        more = networks.others(method_class, config.method, model, source.classes, about=wanted, size=size, encoder=untuned, report=report)
        notes += report.notes
        warnings += report.warnings
        weak_pass = config.train.weak_pass
        if weak_pass == "auto":
            weak_pass = "joint" if network.has_batchnorm else "separate"
        network = to_format(network)
        method_config = config.method
        views = method_class.asks(method_config)
        if views.unlabelled and len(split.unlabelled) == 0:
            raise DataError(f"{config.method_name} needs unlabelled {source.samples} and {data.name} has none; use --method supervised")
        config = fit_batches(config, split, bool(views.unlabelled), notes, source.samples)
        train = config.train
        if is_table:
            with indexing(quiet, "reading texts") as progress:
                pipeline = texts.pipeline(config, source, split, views, device, wanted, note=notes.append, progress=progress)
            with indexing(quiet, "labelling texts") as progress:
                lines = own_labels.make(config, method_class, pipeline, split, warn=warnings.append, note=notes.append, progress=progress)
        else:
            pipeline, lines = make_pipeline(config, source, split, views, device, size), []
        spec = given.spec_of(pipeline.spec, method_class, config, source, split, notes.append, warnings.append, lines)
        folder = method_class.teacher_run(method_config)
        method = method_class(
            method_config,
            network,
            spec,
            **({} if folder is None else {"teacher": teacher.load(folder, spec, wanted.text)}),
            **{keyword: to_format(other) for keyword, other in more.items()},
            unlabelled_batch=train.batch_size * train.ratio if views.unlabelled else 0,
            ema=train.ema,
            weak_pass=weak_pass,
        )
        notes.append(given.check_banks(method, device))
        method = method.to(device)
        if not is_table:
            pipeline.augmenter.rates = method.learned_augmentation() or pipeline.augmenter.rates
        fp8.apply(method.network, config.model, train, device)
        if is_table:  # as eval and predict shall read
            config = dataclasses.replace(config, data=dataclasses.replace(config.data, max_length=pipeline.reads))
            warnings += filter(None, [texts.same_views(config, method)])
        config = texts.decayed(config, method, notes)  # a network without layers is refused before a run directory is made
    notes.append(f"weak pass: {method.weak_pass} ({'network with' if network.has_batchnorm else 'no'} batch-norm)" if views.no_grad else "")
    return Parts(config, device, source, split, pipeline, method, [n for n in notes if n], warnings, lines)


def to_format(network: Network) -> Network:
    """The network in the memory format in which it is fastest."""
    return network.to(memory_format=torch.channels_last) if network.has_batchnorm else network


def make_pipeline(config: RunConfig, source: Source, split: Split, views: Views, device: torch.device, size: int) -> ResidentPipeline:
    """The pipeline that the source was taken in for, drawing views of `size` pixels."""
    data, train = config.data, config.train
    options = {
        "batch_size": train.batch_size // train.accumulate,  # a step draws as many pieces as its gradients are accumulated over
        "ratio": train.ratio,
        "seed": train.seed,
        "policy": data.policy,
        "device": device,
        "size": size,
        "resize": data.resize,
        "interpolation": data.interpolation,
    }
    if source.choice.name == "resident":
        return ResidentPipeline(source, split, views, **options)
    from ..pipelines.streamed import DaliPipeline

    return DaliPipeline(source, split, views, max_bad=data.max_bad, workers=data.workers, **options)


def room(device: torch.device) -> choice.Room:
    """The memory that is free for decoded images."""
    memory = environment.memory()
    host = memory[1] if memory else None
    return choice.Room(str(device), torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else host, host)


def draw_split(config: RunConfig, source: Source, *, restored: bool = False, note: Callable[[str], None] = lambda text: None) -> Split:
    """The split that the configuration asks for; warnings go to `source.warnings`, what was done to its labels to `note`.

    A run that is `restored` reads its own split file, which holds what the imbalance profiles and the label noise drew: they are not asked
    again.
    """
    data = config.data
    profiles = None if restored else Imbalance(data.imbalance, data.imbalance_unlabelled, data.head_unlabelled)
    draw = functools.partial(
        splits.make,
        per_class=data.labels_per_class,
        fraction=data.label_fraction,
        total=data.labels_total,
        sampling=data.sampling,
        seed=config.train.seed,
        split_file=data.split,
        holdout=data.holdout,
        imbalance=profiles,
    )
    return draw(source) if restored else label_noise.configured(data, source, draw, seed=config.train.seed, note=note)


def fit_batches(config: RunConfig, split: Split, unlabelled: bool, notes: list[str], samples: str = "images") -> RunConfig:
    """Fits batch size and ratio to a set smaller than a batch, unless the user asked for them: then rows repeat.

    A batch shrinks to the labelled images there are, while as many unlabelled images a step are kept as the set can give.
    """
    train = config.train
    batch, ratio = train.batch_size, train.ratio
    if batch < 1 or ratio < 1:
        raise ConfigError(f"train.batch_size and train.ratio must be at least 1, got {batch} and {ratio}")
    soft = {key: config.origins.get(f"train.{key}", "default") in SOFT_ORIGINS for key in ("batch_size", "ratio")}
    wanted = batch * ratio
    if batch > len(split.labelled) and soft["batch_size"]:
        batch = max(1, len(split.labelled))
        if soft["ratio"]:
            ratio = -(-wanted // batch)
    if unlabelled and soft["ratio"] and batch * ratio > len(split.unlabelled):
        ratio = max(1, len(split.unlabelled) // batch)
    if batch < train.min_labelled:
        batch, ratio = train.min_labelled, max(1, round(batch * ratio / train.min_labelled))
    if (batch, ratio) != (train.batch_size, train.ratio):
        more = f" and {batch * ratio} unlabelled" if unlabelled else ""
        raised = train.min_labelled and batch == train.min_labelled
        why = f"at least {batch} labelled (train.min_labelled)" if raised else f"fitted to the {len(split.labelled)} labels"
        notes.append(f"{batch} labelled{more} {samples} a step, {why}")
    if batch % train.accumulate:
        raise ConfigError(
            f"train.accumulate {train.accumulate} does not divide the batch of {batch} labelled {samples}; give a divisor of it"
        )
    return dataclasses.replace(config, train=dataclasses.replace(train, batch_size=batch, ratio=ratio))


def choose_device(name: str, amp: str) -> torch.device:
    """The device by name, checked, and checked for its mixed precision.

    Raises:
        SetupError: a device or a precision that this machine lacks.
        ConfigError: no such device name.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"--device must be auto, cpu, cuda or cuda:N, got '{name}'") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device must be auto, cpu, cuda or cuda:N, got '{name}'")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise SetupError(f"--device {name}: torch sees {torch.cuda.device_count()} CUDA devices; use --device cpu or see fastssl doctor")
    if amp == "fp16" and device.type == "cpu":
        raise SetupError("--amp fp16 needs a CUDA device, and this run is on the CPU; use --amp bf16 or off")
    if amp == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise SetupError(f"--amp bf16: {torch.cuda.get_device_name(device)} lacks bfloat16; use --amp fp16 or off")
    return device


def check_kernels(device: torch.device) -> None:
    """Raises SetupError where FASTSSL_KERNELS asks for losses that this version or machine cannot serve on the run's device."""
    try:
        _dispatch.server(device.type)
    except RuntimeError as error:
        raise SetupError(str(error)) from None


def trained_parameters(method: Method) -> int:
    """Number of weights that train."""
    return sum(p.numel() for p in method.parameters() if p.requires_grad)
