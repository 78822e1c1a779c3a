"""The losses once more, row by row in plain Python numbers, straight from the formulas of the papers. It shares nothing with fastssl.

Rows are lists of floats. `cross_entropy_row` and its relatives return (loss, gradient with respect to the student's row).
"""

from __future__ import annotations

import math


def softmax(row: list[float]) -> list[float]:
    top = max(row)
    powers = [math.exp(z - top) for z in row]
    return [x / math.fsum(powers) for x in powers]


def log_softmax(row: list[float]) -> list[float]:
    top = max(row)
    log_sum = math.log(math.fsum(math.exp(z - top) for z in row))
    return [z - top - log_sum for z in row]


def first_argmax(row: list[float]) -> int:
    return max(range(len(row)), key=lambda c: (row[c], -c))


def align_probabilities(p: list[float], ratio: list[float] | None) -> list[float]:
    if ratio is None:
        return p
    scaled = [x * r for x, r in zip(p, ratio, strict=True)]
    return [x / math.fsum(scaled) for x in scaled]


def sharpen(p: list[float], temperature: float) -> list[float]:
    powers = [x ** (1 / temperature) for x in p]
    return [x / math.fsum(powers) for x in powers]


def hard_target(label: int, classes: int, smoothing: float) -> list[float]:
    return [1 - smoothing if c == label else smoothing / (classes - 1) for c in range(classes)]


def cross_entropy_row(
    row: list[float],
    q: list[float],
    *,
    label: int | None = None,
    margin: list[float] | None = None,
    adjust: list[float] | None = None,
    class_weight: list[float] | None = None,
) -> tuple[float, list[float]]:
    """-sum_c class_weight_c q_c log p_c; with `margin`, margin[label] is added to every logit but the label's."""
    z = list(row)
    if adjust is not None:
        z = [a + b for a, b in zip(z, adjust, strict=True)]
    if margin is not None:
        z = [x if c == label else x + margin[label] for c, x in enumerate(z)]
    if class_weight is not None:
        q = [a * b for a, b in zip(q, class_weight, strict=True)]
    log_p = log_softmax(z)
    loss = -math.fsum(a * b for a, b in zip(q, log_p, strict=True))
    mass = math.fsum(q)
    return loss, [math.exp(b) * mass - a for a, b in zip(q, log_p, strict=True)]


def weight_of(weighting: str, c: float, t: float, power: float, variance: float | None) -> float:
    if weighting == "none":
        return 1.0
    if weighting == "step":
        return float(c >= t)
    if weighting == "confidence":
        return c if c >= t else 0.0
    if weighting == "smooth":
        return float(c >= t) if t >= 1 else (max(0.0, c - t) / (1 - t)) ** power
    return 1.0 if c >= t else math.exp(-2 * (c - t) ** 2 / variance)


def threshold_of(threshold, row: int, label: int) -> float:
    """A number, a list by label, or a list of one-element lists by row."""
    if isinstance(threshold, float):
        return threshold
    return threshold[row][0] if isinstance(threshold[0], list) else threshold[label]


def pseudo_label_loss(
    student: list[list[list[float]]],  # [V][N][C]
    teacher: list[list[float]] | tuple[list[int], list[float]],  # [N][C] logits, or (label [N], confidence [N])
    *,
    threshold=0.95,
    weighting="step",
    power=1.0,
    variance=None,
    judge=None,
    temperature=None,
    align=None,
    align_for="both",
    margin=None,
    adjust=None,
    smoothing=0.0,
    sample_weight=None,
) -> dict:
    """Lists loss [V*N], label [N], confidence [N], weight [V*N], gradient [V][N][C] of the sum of the losses."""
    labels, confidences, weights, targets = [], [], [], []
    ready = isinstance(teacher, tuple)
    for n in range(len(student[0])):
        classes = len(student[0][n])
        if ready:
            label, confidence = teacher[0][n], teacher[1][n]
            q = hard_target(label, classes, smoothing)
        else:
            raw = softmax(teacher[n])
            fair = align_probabilities(raw, align)
            named = fair if align_for == "both" else raw
            label, confidence = first_argmax(named), max(fair)
            q = hard_target(label, classes, smoothing) if temperature is None else sharpen(named, temperature)
        judged = confidence if judge is None else max(align_probabilities(softmax(judge[n]), align))
        w = weight_of(weighting, judged, threshold_of(threshold, n, label), power, variance)
        labels.append(label)
        confidences.append(confidence)
        weights.append(w * (1.0 if sample_weight is None else sample_weight[n]))
        targets.append(q)
    losses, gradient = [], []
    for view in student:
        rows = []
        for n, row in enumerate(view):
            loss, slope = cross_entropy_row(row, targets[n], label=labels[n], margin=margin, adjust=adjust)
            losses.append(weights[n] * loss)
            rows.append([weights[n] * g for g in slope])
        gradient.append(rows)
    return {"loss": losses, "label": labels, "confidence": confidences, "weight": weights * len(student), "gradient": gradient}


def consistency_row(student: list[float], q: list[float], kind: str, temperature: float) -> float:
    """`q` is the teacher's probability row, temperature already applied."""
    p = softmax([z / temperature for z in student])
    if kind == "mse":
        return math.fsum((a - b) ** 2 for a, b in zip(p, q, strict=True)) / len(p)
    terms = [a * (math.log(a) if kind == "kl" else 0.0) - a * math.log(b) for a, b in zip(q, p, strict=True) if a > 0]
    return math.fsum(terms)
