"""Views of texts: frequencies against their probabilities, whole words, and views as functions of their keys."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch._subclasses.fake_tensor import FakeTensorMode

from fastssl.pipelines import text_views
from fastssl.pipelines.errors import ConfigError, DataError
from fastssl.pipelines.text_policies import TEXT_POLICIES, text_policy
from fastssl.pipelines.text_views import TextAugmenter, with_variants
from fastssl.pipelines.text_words import Words
from tests.pipelines.made_texts import BEGIN, END, MASK, SPECIAL, toy

LONG = " ".join(f"w{i % 23}" if i % 3 else f"p{i % 7}-q{i % 5}-r" for i in range(40))
TEXTS = ["the cat sat on the mat", "the do-g sat on a cat", "mark-et-s fell as the do-g rose", "one", "so so so so", "", "two words", LONG]
L = 88
AUGMENTED = (
    ["a mat sat", "", "", "1", " ", "text of none", "", "w1 p1-q1-r " * 12],
    ["the cat the cat", "", "mark-et-s rose", "", "", "", "", ""],
    ["", "", "the do-g fell", "", "", "", "", ""],
)
TOGETHER, VARIANTS = with_variants(TEXTS, AUGMENTED)
TOKENS, PIECES = toy(TOGETHER, L)
WORDS = Words.of(TOKENS, np.arange(len(TEXTS)), special=SPECIAL)
IDS, WORD, FIRST = (torch.from_numpy(table) for table in TOKENS[:3])
MADE = ("tfidf", "uniform", "span_mask", "tfidf+span_mask", "back_translation", "back_translation+tfidf")


def augmenter(policy: str = "tfidf", **options) -> TextAugmenter:
    return TextAugmenter(WORDS, **({"mask": MASK, "policy": policy, "variants": VARIANTS} | options))


def views(made: TextAugmenter, row: int, count: int, name: str = "strong", length: int = L, start: int = 0) -> torch.Tensor:
    """`count` views of one text, under different keys."""
    return of_rows(made, torch.full((count,), row), torch.arange(start, start + count) * 7919, name, length)


def of_rows(made: TextAugmenter, rows: torch.Tensor, keys: torch.Tensor, name: str = "strong", length: int = L) -> torch.Tensor:
    rows = made.reads(rows, keys, name)
    return made.view(*(table[rows, :length] for table in (IDS, WORD, FIRST, WORDS.chance)), keys, name)


def words_of(ids: torch.Tensor) -> list[str]:
    assert (ids >= 0).sum() == len(ids) - (ids < 0).sum() and not (ids[: int((ids >= 0).sum())] < 0).any(), "a hole amid the text"
    return [PIECES[i] for i in ids[ids >= 0].tolist()]


def test_plain_is_the_text_and_so_is_weak_without_dropout():
    made = augmenter()
    for name in ("plain", "weak"):
        got = views(made, 2, 3, name)
        assert got.dtype == torch.int64 and torch.equal(got, IDS[[2, 2, 2]].long())


@pytest.mark.parametrize("rate", [0.3, 0.9])
@pytest.mark.parametrize("row", [0, 2])
def test_words_give_way_as_often_as_the_formula_says(row, rate):
    n = 4000
    made, count = augmenter(rate=rate), len(TEXTS[row].split())
    begins = torch.nonzero(FIRST[row])[:, 0]
    chance = WORDS.chance[row, begins].double() * rate
    # Where a word gave way shows before the view closes up.
    text = text_of(row, n)
    after = made._replaced(text, torch.arange(n) * 7919, WORDS.chance[row].expand(n, -1))
    same = after.ids[:, begins] == text.ids[:, begins]
    drawn = torch.diff(WORDS.cumulative, prepend=torch.zeros(1))
    for at in range(count):
        # A word may be replaced by itself.
        itself = float(drawn[WORDS.tokens == int(IDS[row, begins[at]])].sum()) if (WORD[row] == WORD[row, begins[at]]).sum() == 1 else None
        if itself is None:
            continue
        p = min(1.0, float(chance[at])) * (1 - itself)
        assert stats.binomtest(int((~same[:, at]).sum()), n, min(1.0, p)).pvalue > 1e-5 if p > 0 else same[:, at].all()


def text_of(row: int, count: int) -> text_views._Text:
    ids, word, first = (table[row].expand(count, -1) for table in (IDS, WORD, FIRST))
    return text_views._Text(ids.long(), word >= 0, (first.cumsum(1) - 1).clamp(min=0), first, ids >= 0)


@pytest.mark.parametrize("policy", ["tfidf", "uniform"])
def test_words_that_come_are_drawn_by_their_weights(policy):
    made = augmenter(policy, rate=1.0)
    got = views(made, 7, 1500)
    share = (
        torch.diff(WORDS.cumulative, prepend=torch.zeros(1)).numpy()
        if policy == "tfidf"
        else np.full(len(WORDS.tokens), 1 / len(WORDS.tokens))
    )
    if policy == "tfidf":  # of words that certainly give way alone: the others may be their own
        at = made._replaced(text_of(7, 1500), torch.arange(1500), torch.full((1500, L), 9.0))
        got = torch.where(at.first & at.stays, at.ids, -1)
    tokens = got[torch.isin(got, WORDS.tokens)]
    counts = np.array([(tokens == token).sum() for token in WORDS.tokens])
    assert counts.sum() == 1500 * 40 and not counts[share == 0].any()
    keep = share > 0
    assert stats.chisquare(counts[keep], counts.sum() * share[keep]).pvalue > 1e-5


@pytest.mark.parametrize(("policy", "rate", "sizes"), [("tfidf", 0.1, {11, 10}), ("uniform", 0.5, {11, 10, 9, 8})])
def test_a_words_other_pieces_go_with_it(policy, rate, sizes):
    single = {PIECES[i] for i in WORDS.tokens.tolist()}
    lengths = set()
    for ids in views(augmenter(policy, rate=rate), 2, 300):
        got = words_of(ids)
        assert got[0] == "[CLS]" and got[-1] == "[SEP]"
        rest, count = got[1:-1], 0
        for word in TEXTS[2].split():
            pieces = word.split("-")
            whole = rest[: len(pieces)] == pieces
            assert whole or rest[0] in single
            rest, count = rest[len(pieces) if whole else 1 :], count + 1
        assert not rest and count == 6
        lengths.add(len(got))
    assert lengths == sizes  # by tfidf the market's word, which says most, stays


def test_uniform_leaves_texts_of_two_words_alone():
    made = augmenter("uniform", rate=1.0)
    assert torch.equal(views(made, 6, 20), IDS[[6] * 20].long())
    many = views(made, 4, 200)[:, 1:5]
    assert (many != IDS[4, 1]).any(0).all()


@pytest.mark.parametrize("share", [0.2, 0.9])
def test_dropout_takes_whole_words_and_leaves_one(share):
    n, made = 3000, augmenter(token_dropout=share)
    got = views(made, 2, n, "weak")
    counts = torch.zeros(6)
    for ids in got:
        kept = words_of(ids)
        assert kept[0] == "[CLS]" and kept[-1] == "[SEP]" and len(kept) > 2
        text = " ".join(kept[1:-1]).replace("mark et s", "mark-et-s").replace("do g", "do-g").split()
        assert set(text) <= set(TEXTS[2].split())
        counts += torch.tensor([word in text for word in TEXTS[2].split()])
    stays = 1 - share + share**6 / 6  # all six below: one of them stays
    assert all(stats.binomtest(int(count), n, stays).pvalue > 1e-5 for count in counts)


def test_lengths_of_spans():
    length, (cumulative, left) = np.arange(1, 11), text_views.span_table()
    share = np.diff(cumulative, prepend=0)
    assert share @ length == pytest.approx(3.0, abs=1e-9)
    np.testing.assert_allclose(share[1:] / share[:-1], share[1] / share[0], rtol=1e-9)  # geometric
    np.testing.assert_allclose(np.diff(left, prepend=0), [(share * (length >= k)).sum() / 3 for k in length], rtol=1e-9)


@pytest.mark.parametrize("rate", [0.15, 0.5])
def test_every_word_is_as_likely_to_be_masked(rate):
    n = 4000
    covered = augmenter("span_mask", rate=rate)._covered(*text_views._drawn(torch.arange(n) * 31, torch.arange(L), 2))
    for at in (0, 1, 2, 9, 20, 39, L - 1):
        assert stats.binomtest(int(covered[:, at].sum()), n, rate).pvalue > 1e-5
    # Runs: spans of 3 words on the mean, joined to the next one where the gap between them is empty.
    starts = (covered[:, 1:] & ~covered[:, :-1]).sum()
    ends_at_once = 1 / (1 + 3 * (1 - rate) / rate)
    assert float(covered.sum() / starts) == pytest.approx(3 / (1 - ends_at_once), rel=0.06)


@pytest.mark.parametrize("mask", [MASK, None])
def test_spans_mask_whole_words_or_take_them_out(mask):
    for ids in views(augmenter("span_mask", rate=0.4, mask=mask), 2, 300):
        got = words_of(ids)
        assert len(got) == 11 or mask is None
        text = " ".join(got[1:-1]).replace("mark et s", "mark-et-s").replace("do g", "do-g").replace("[MASK]", "").split()
        assert set(text) <= set(TEXTS[2].split()) and text


def test_rate_zero_and_one():
    for policy in MADE[:4]:
        assert torch.equal(of_rows(augmenter(policy, rate=0.0), torch.arange(8), torch.arange(8)), IDS[:8].long())
    masked = views(augmenter("span_mask", rate=1.0), 7, 50)
    # All but one word, whichever it is: of one token or of three.
    assert set((IDS[7] != masked).sum(1).tolist()) == {int((WORD[7] >= 0).sum()) - 1, int((WORD[7] >= 0).sum()) - 3}
    left = views(augmenter("span_mask", rate=1.0, mask=None), 0, 50)
    assert set((left >= 0).sum(1).tolist()) == {3} and len(torch.unique(left[:, 1])) == 5
    assert torch.equal(views(augmenter("tfidf", rate=1.0), 3, 5), IDS[[3] * 5].long())  # one word, and
    assert torch.equal(views(augmenter("tfidf", rate=1.0), 4, 5), IDS[[4] * 5].long())  # one word four times: they say the same
    assert torch.equal(views(augmenter("tfidf", token_dropout=1.0), 3, 5, "weak"), IDS[[3] * 5].long())


def test_a_row_gets_one_of_its_translations():
    n, made = 3000, augmenter("back_translation")
    for row, want in ((0, [0, 1]), (2, [1, 2]), (3, [0]), (5, [0])):
        got = [" ".join(words_of(ids)[1:-1]) for ids in views(made, row, n)]
        counts = [got.count(AUGMENTED[column][row].replace("-", " ")) for column in want]
        assert sum(counts) == n and (len(want) == 1 or stats.binomtest(counts[0], n, 0.5).pvalue > 1e-5)
    for row in (1, 4, 6):  # none, and one of white space alone
        assert torch.equal(views(made, row, 20), IDS[[row] * 20].long())
    for name in ("plain", "weak"):
        assert torch.equal(of_rows(made, torch.arange(8), torch.arange(8), name), IDS[:8].long())
    both = {tuple(words_of(ids)[1:-1]) for ids in views(augmenter("back_translation+tfidf", rate=0.9), 2, 300)}
    # "mark-et-s rose" says the same with both words; of "the do-g fell" the last word says most.
    assert ("mark", "et", "s", "rose") in both and {len(words) for words in both} == {4, 3} and len(both) > 10
    assert all(words[-1] == "fell" for words in both - {("mark", "et", "s", "rose")})


def test_a_set_without_translations_has_no_variants():
    assert with_variants(["a", "b"], ()) == (["a", "b"], None)
    assert with_variants(["a", "b"], (["", " "],)) == (["a", "b"], None)


@pytest.mark.parametrize("policy", MADE)
@pytest.mark.parametrize("mask", [MASK, None])
def test_a_view_depends_on_its_row_and_key_alone(policy, mask):
    made, rows, keys = augmenter(policy, mask=mask, token_dropout=0.3), torch.arange(8).repeat(4), torch.arange(32) * 104729 + 5
    short = torch.where(rows == 7, 0, rows)  # all but the long text fit in 24
    for name in ("weak", "strong"):
        whole = of_rows(made, short, keys, name)
        for at in range(32):
            assert torch.equal(of_rows(made, short[at : at + 1], keys[at : at + 1], name)[0], whole[at])
        if "back_translation" not in policy:
            assert torch.equal(of_rows(made, short, keys, name, 24), whole[:, :24]) and (whole[:, 24:] == -1).all()
            again = of_rows(made, rows, keys + 1, name)
            assert not torch.equal(again, of_rows(made, rows, keys, name))
        ends = (whole >= 0).sum(1) - 1
        assert (whole[:, 0] == BEGIN).all() and (whole.gather(1, ends[:, None]) == END).all()


def test_a_text_of_as_many_tokens_as_fit():
    size = int((IDS[7] >= 0).sum())
    for policy in MADE[:4]:
        got = views(augmenter(policy, rate=0.7, token_dropout=0.5), 7, 20, length=size)
        assert got.shape == (20, size) and torch.equal(got, views(augmenter(policy, rate=0.7), 7, 20)[:, :size])


@pytest.mark.parametrize("policy", MADE)
def test_views_compile_whole(policy):
    made = augmenter(policy, token_dropout=0.3)
    rows, keys = torch.arange(8), torch.arange(8) * 3
    for name in ("weak", "strong") if policy == "tfidf" else ("strong",):
        compiled = torch.compile(lambda *given, name=name: of_rows(made, *given, name), fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(rows, keys), of_rows(made, rows, keys, name))


@pytest.mark.parametrize("policy", MADE)
def test_a_view_reads_nothing_on_the_host(policy, nothing_from_the_host):
    with FakeTensorMode(allow_non_fake_inputs=True):
        cuda = lambda table: table.to("cuda")  # noqa: E731
        words = Words(cuda(WORDS.chance), cuda(WORDS.tokens), cuda(WORDS.cumulative), WORDS.idf, WORDS.score, 1.0, 1.0)
        made = TextAugmenter(words, mask=MASK, policy=policy, token_dropout=0.2, variants=VARIANTS, device="cuda")
        rows, keys = cuda(torch.arange(8)), cuda(torch.arange(8))
        tables = [cuda(table) for table in (IDS, WORD, FIRST)] + [words.chance]
        with nothing_from_the_host():
            for name in ("plain", "weak", "strong"):
                read = made.reads(rows, keys, name)
                got = made.view(*(table.index_select(0, read) for table in tables), keys, name)
                assert (got.shape, got.dtype, got.device.type) == ((8, L), torch.int64, "cuda")


@pytest.mark.parametrize(
    ("policy", "sentence"),
    [
        ("tfidff", "did you mean tfidf"),
        ("fixmatch", "is for images; those for texts are tfidf"),
        ("tfidf+tfidf", "twice"),
        ("tfidf+back_translation", "put back_translation first"),
        ("tfidf+", "unknown policy of texts ''"),
    ],
)
def test_policies_that_do_not_exist(policy, sentence):
    with pytest.raises(ConfigError, match=sentence.replace("+", r"\+")):
        text_policy(policy)
    assert [text_policy(name) for name in TEXT_POLICIES] == [(name,) for name in TEXT_POLICIES]


def test_what_a_policy_lacks_is_said():
    for options, sentence in (
        ({"rate": 1.5}, "data.replace_rate is a share"),
        ({"token_dropout": float("nan")}, "data.token_dropout is a share"),
        ({"policy": "back_translation", "variants": None}, "text_aug_0"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            augmenter(**options)
    with pytest.raises(ConfigError, match="give `words`"):
        TextAugmenter(None, mask=MASK)
    with pytest.raises(DataError, match="single token"):
        TextAugmenter(Words.of(toy(["a-b c-d"], 8)[0], np.arange(1)), mask=MASK)
    for name, sentence in (("simclr", "for images; those of texts are plain"), ("strongg", "did you mean strong")):
        with pytest.raises(ConfigError, match=sentence):
            augmenter().view(IDS, WORD, FIRST, WORDS.chance, torch.arange(len(IDS)), name)
