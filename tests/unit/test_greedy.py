"""Greedy decoding in rows, with fake decoders."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.decoding.greedy import Draft, Hypothesis, TextJob, greedy_rows
from runtime.decoding.loops import loop_period, loop_start, penalize
from tests.helpers.rows import HashedRows, PlainRows

VOCAB, STOP = 50, 49
NO_AUDIO = np.zeros((0, 4), np.float32)


class ScriptedRows(PlainRows):
    """A decoder whose rows emit scripted tokens; a prompt's first token selects the script.

    Attributes:
        fed: the tokens fed to the row of each script.
        script_of: the script of each row.
        steps: the number of rows in each step.
        layouts: rows and positions of each layout that was opened.
    """

    def __init__(self, scripts: list[list[int]], *, movable: bool = True) -> None:
        self.movable = movable
        self.scripts = scripts
        self.fed: list[list[int]] = [[] for _ in scripts]
        self.script_of: dict[int, int] = {}
        self.steps: list[int] = []
        self.layout = (0, 0)
        self.layouts: list[tuple[int, int]] = []

    def _logits(self, script: int) -> np.ndarray:
        logits = np.zeros(VOCAB, np.float32)
        tokens = self.scripts[script]
        logits[tokens[min(len(self.fed[script]), len(tokens) - 1)]] = 5.0
        return logits

    def open_rows(self, rows: int, positions: int) -> None:
        self.layout = (rows, positions)
        self.layouts.append(self.layout)
        self.script_of.clear()

    def prefill_row(self, row: int, prompt: list[int], audio_embeds: np.ndarray) -> np.ndarray:
        assert 0 <= row < self.layout[0]
        self.script_of[row] = prompt[0]
        return self._logits(prompt[0])

    def move_row(self, source: int, target: int) -> None:
        assert self.movable
        self.script_of[target] = self.script_of.pop(source)

    def step(self, tokens: Sequence[int | None]) -> np.ndarray:
        self.steps.append(len(tokens))
        logits = np.full((len(tokens), VOCAB), np.nan, np.float32)
        for row, token in enumerate(tokens):
            if token is None:
                assert not self.movable
                continue
            self.fed[self.script_of[row]].append(token)
            logits[row] = self._logits(self.script_of[row])
        return logits


def decode(
    decoder: ScriptedRows, jobs: Iterable[TextJob], rows: int, forbidden_ids: Collection[int] = ()
) -> Iterator[tuple[int, Hypothesis]]:
    """Decode all jobs; yield their indices and texts. Rows have 100 positions, or as many as a longer job needs."""
    waiting = iter(enumerate(jobs))
    return greedy_rows(
        decoder,
        lambda: next(waiting, None),
        lambda positions: (rows, 100) if positions <= 100 else (1, positions),
        {STOP},
        forbidden_ids=forbidden_ids,
    )


def script(tokens: list[int]) -> tuple[ScriptedRows, list[int]]:
    """Return a decoder that emits ``tokens``, and the list of tokens that it is fed."""
    decoder = ScriptedRows([tokens])
    return decoder, decoder.fed[0]


def greedy(decoder: ScriptedRows, budget: int, *, ignore_stop: bool = False, penalty: float = 1.0) -> Hypothesis:
    """Return the text of a decoder's only script."""
    ((index, result),) = decode(decoder, [TextJob([0], NO_AUDIO, budget, ignore_stop, penalty)], 1)
    assert index == 0
    return result


def test_stops_at_a_stop_id() -> None:
    decoder, fed = script([3, 1, 4, STOP, 5])
    result = greedy(decoder, 100)
    assert (result.tokens, result.finish_reason) == ([3, 1, 4], "stop")
    assert fed == [3, 1, 4]
    assert len(result.log_probabilities) == 4
    expected = math.exp(5) / (math.exp(5) + VOCAB - 1)
    assert result.confidence == pytest.approx(expected, rel=1e-5)


def test_the_confidence_of_an_empty_text_is_that_of_the_stop_id() -> None:
    decoder, _ = script([STOP])
    result = greedy(decoder, 100)
    assert result.tokens == []
    assert 0.7 < result.confidence < 0.8


def test_a_text_has_at_most_budget_tokens() -> None:
    tokens = list(range(40))
    decoder, fed = script(tokens)
    result = greedy(decoder, 7)
    assert (result.tokens, result.finish_reason) == (tokens[:7], "length")
    assert len(fed) == 6  # no step follows the last token


def test_a_loop_ends_and_keeps_one_period() -> None:
    decoder, fed = script([1, 2, 3] + [7, 8] * 200)
    result = greedy(decoder, 400)
    assert (result.tokens, result.finish_reason) == ([1, 2, 3, 7, 8], "repetition")
    assert len(fed) < 40


def test_ignore_stop_gives_exactly_budget_tokens() -> None:
    decoder, _ = script([STOP] * 100)
    result = greedy(decoder, 60, ignore_stop=True)
    assert (len(result.tokens), result.finish_reason) == (60, "length")


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.integers(0, 12))
def test_any_long_repetition_is_a_loop(period: list[int], prefix: int) -> None:
    tokens = [90 + i for i in range(prefix)] + period * 40
    length = loop_period(tokens)
    assert length
    assert len(period) % length == 0
    assert loop_start(tokens, length) == prefix


@given(st.lists(st.integers(0, 9), min_size=1, max_size=20), st.integers(2, 5))
def test_a_few_repeats_of_a_phrase_are_no_loop(phrase: list[int], times: int) -> None:
    """Speech contains repetitions and counting: up to five repeats of a phrase without inner repetition pass."""
    distinct = [100 + index for index in range(len(phrase))]
    assert loop_period([1, 2, *distinct * times]) == 0


def test_log_probabilities_are_a_log_softmax() -> None:
    class FixedLogits(ScriptedRows):
        def _logits(self, script: int) -> np.ndarray:
            logits = np.full(VOCAB, -5.0, np.float32)
            logits[:2] = 1000.0, 999.0
            return logits

    ((_, result),) = decode(FixedLogits([[0]]), [TextJob([0], NO_AUDIO, 2)], 1)
    assert result.log_probabilities == pytest.approx([-math.log1p(math.exp(-1))] * 2, rel=1e-5)


def test_a_penalty_makes_earlier_tokens_less_likely() -> None:
    """Positive logits are divided, negative ones multiplied; log-probabilities are those without the penalty."""
    logits = np.array([2.0, -2.0, 1.5, 0.0], np.float32)
    assert penalize(logits, [0, 1, 0], 2.0).tolist() == [1.0, -4.0, 1.5, 0.0]
    assert logits[0] == 2.0

    class Looping(ScriptedRows):
        def _logits(self, script: int) -> np.ndarray:
            logits = np.zeros(VOCAB, np.float32)
            logits[[7, 8]] = 5.0, 4.0
            return logits

    assert greedy(Looping([[]]), 60).finish_reason == "repetition"
    result = greedy(Looping([[]]), 3, penalty=1.5)
    assert result.tokens[:2] == [7, 8]
    total = math.log(math.exp(5) + math.exp(4) + VOCAB - 2)
    assert result.log_probabilities[:2] == pytest.approx([5 - total, 4 - total], rel=1e-5)


texts = st.lists(st.lists(st.integers(0, 40), max_size=15), min_size=1, max_size=9)


@given(texts, st.integers(1, 5), st.integers(1, 12), st.booleans())
def test_the_number_of_rows_changes_only_the_order_of_texts(
    scripts: list[list[int]], rows: int, budget: int, movable: bool
) -> None:
    """Each text equals that of a single run, for any other jobs and any number of rows."""
    scripts = [[*tokens, STOP] for tokens in scripts]
    jobs = [TextJob([index], NO_AUDIO, budget) for index in range(len(scripts))]
    results = dict(decode(ScriptedRows(scripts, movable=movable), jobs, rows))
    assert sorted(results) == list(range(len(scripts)))
    for index, tokens in enumerate(scripts):
        assert results[index] == greedy(ScriptedRows([tokens]), budget)


def test_a_free_row_is_filled_at_once_and_a_job_is_taken_when_a_row_is_free() -> None:
    scripts = ScriptedRows([[1, 1, 2, 1, 2, 3, STOP], [4, STOP], [5, 6, STOP], [STOP], [7, STOP]])
    taken: list[int] = []

    def jobs() -> Iterator[TextJob]:
        for index in range(5):
            taken.append(index)
            yield TextJob([index], NO_AUDIO, 20)

    ended = []
    for index, _ in decode(scripts, jobs(), 2):
        ended.append(index)
        if len(ended) == 1:
            assert taken == [0, 1]  # the third job is taken when a row is free
    assert ended == [1, 2, 3, 4, 0]
    assert scripts.layouts == [(2, 100)]
    assert scripts.steps == [2, 2, 2, 2, 1, 1]  # both rows are used while there are two texts


def test_forbidden_ids_are_skipped() -> None:
    """The most probable allowed token is chosen instead, at the first position and later."""
    scripts = ScriptedRows([[5, 1, 5, STOP]])
    ((_, result),) = decode(scripts, [TextJob([0], NO_AUDIO, 10)], 1, forbidden_ids=[5])
    assert result.tokens == [0, 1, 0]
    assert scripts.fed[0] == [0, 1, 0]


def test_a_job_too_long_for_the_rows_gets_rows_of_its_own() -> None:
    """It waits for earlier texts, and later jobs wait for it: each layout is opened once."""
    scripts = ScriptedRows([[1, STOP], [2, 2, STOP], [3, STOP], [4, STOP]])
    jobs = [TextJob([index], NO_AUDIO, 300 if index == 2 else 20) for index in range(4)]
    results = list(decode(scripts, jobs, 2))
    assert [index for index, _ in results] == [0, 1, 2, 3]
    assert [result.tokens for _, result in results] == [[1], [2, 2], [3], [4]]
    assert scripts.layouts == [(2, 100), (1, 301), (2, 100)]


def test_a_result_may_add_a_job() -> None:
    """A job added after a result is decoded, although no job was left when the result was computed."""
    scripts = ScriptedRows([[1, STOP], [2, 3, STOP]])
    waiting: list[tuple[int, TextJob]] = [(0, TextJob([0], NO_AUDIO, 20))]
    texts = []
    ended = greedy_rows(scripts, lambda: waiting.pop() if waiting else None, lambda _: (4, 100), {STOP})
    for index, result in ended:
        texts.append(result.tokens)
        if index == 0:
            waiting.append((1, TextJob([1], NO_AUDIO, 20)))
    assert texts == [[1], [2, 3]]


def test_timings_name_the_jobs_of_each_stage() -> None:
    scripts = ScriptedRows([[1, STOP], [2, 2, 2, STOP]])
    jobs = iter([(name, TextJob([index], NO_AUDIO, 20)) for index, name in enumerate("ab")])
    timings: list[tuple[str, list[str]]] = []
    ended = greedy_rows(
        scripts,
        lambda: next(jobs, None),
        lambda _: (2, 100),
        {STOP},
        on_timing=lambda stage, keys, seconds: timings.append((stage, list(keys))) if seconds >= 0 else None,
    )
    assert [key for key, _ in ended] == ["a", "b"]
    prefills = [("prefill", ["a"]), ("prefill", ["b"])]
    assert timings == [*prefills, ("decode", ["a", "b"]), ("decode", ["b"]), ("decode", ["b"])]


WORDS = 12


def decoded(job: TextJob, *, blur: float = 0.0, stop: int = WORDS - 1) -> tuple[Hypothesis, HashedRows]:
    """Decode a job beside three others, with :class:`HashedRows`; return its text and the decoder."""
    decoder = HashedRows(WORDS, blur=blur)
    others = [TextJob([1, 2, 3], NO_AUDIO, 9), TextJob([5], NO_AUDIO, 4), TextJob([6, 6], NO_AUDIO, 12)]
    jobs = iter(enumerate([others[0], job, *others[1:]]))
    done = dict(greedy_rows(decoder, lambda: next(jobs, None), lambda _: (2, 60), {stop}))
    assert len(done) == 4
    return done[1], decoder


PROMPT = [4, 0, 7, 7, 2]
token_lists = st.lists(st.integers(0, WORDS - 2), max_size=20)


@given(token_lists, st.integers(1, 15), st.integers(0, 5), st.booleans())
def test_a_draft_does_not_change_the_text(tokens: list[int], budget: int, right: int, exact: bool) -> None:
    """The text is the same for a right draft, a wrong draft, and one that is right up to some token."""
    plain, _ = decoded(TextJob(PROMPT, NO_AUDIO, budget))
    tokens = [*plain.tokens[:right], *tokens]
    drafted, decoder = decoded(TextJob(PROMPT, NO_AUDIO, budget, draft=Draft(tokens, exact=exact)))
    assert (drafted.tokens, drafted.finish_reason) == (plain.tokens, plain.finish_reason)
    assert drafted.log_probabilities == pytest.approx(plain.log_probabilities, rel=1e-5)
    assert (len(PROMPT) in decoder.passes) == (exact or not tokens)


@given(token_lists, st.integers(1, 12))
def test_tokens_within_the_margin_of_a_pass_are_decided_by_single_steps(tokens: list[int], budget: int) -> None:
    plain, _ = decoded(TextJob(PROMPT, NO_AUDIO, budget))
    draft = Draft([*plain.tokens[:4], *tokens], exact=True, min_margin=1.0)
    drafted, _ = decoded(TextJob(PROMPT, NO_AUDIO, budget, draft=draft), blur=0.5)
    assert drafted.tokens == plain.tokens


@given(token_lists, st.integers(0, 22), st.integers(1, 15))
def test_forced_tokens_are_kept(tokens: list[int], forced: int, budget: int) -> None:
    drafted, _ = decoded(TextJob(PROMPT, NO_AUDIO, budget, draft=Draft(tokens, forced=forced)))
    if drafted.finish_reason != "repetition":
        kept_tokens = tokens[: min(forced, budget)]
        assert drafted.tokens[: len(kept_tokens)] == kept_tokens
        rest, _ = decoded(TextJob([*PROMPT, *kept_tokens], NO_AUDIO, budget))
        assert drafted.tokens[len(kept_tokens) :] == rest.tokens[: budget - len(kept_tokens)]


def test_a_snapshot_prefix_is_not_computed_again() -> None:
    plain, _ = decoded(TextJob(PROMPT, NO_AUDIO, 8))
    first, _ = decoded(TextJob([*PROMPT[:4], 9], NO_AUDIO, 8, draft=Draft([], snapshot_length=4)))
    assert first.snapshot == PROMPT[:4]
    draft = Draft(plain.tokens[:2], snapshot=first.snapshot, reuse=3, snapshot_length=5)
    second, decoder = decoded(TextJob(PROMPT, NO_AUDIO, 8, draft=draft))
    assert second.tokens == plain.tokens
    assert 2 + 2 in decoder.passes
    assert second.snapshot == PROMPT


def test_a_long_draft_uses_little_memory_besides_its_logits() -> None:
    """With a vocabulary of 150,000, several floats per word and token of the draft would be hundreds of MB."""
    draft, size = [1 + index % 90 for index in range(300)], 4000
    logits = np.zeros((len(draft) + 1, size), np.float32)
    logits[np.arange(len(draft)), draft] = 9.0
    logits[-1, 0] = 9.0

    class Agreeing(HashedRows):
        def extend_row(
            self, row: int, ids: Sequence[int], audio_embeds: np.ndarray, logits_count: int = 1
        ) -> np.ndarray:
            assert logits_count == len(logits)
            return logits

        def truncate_row(self, row: int, length: int) -> None:
            return

    waiting = iter([(0, TextJob([1], NO_AUDIO, 400, draft=Draft(draft)))])
    tracemalloc.start()
    ((_, text),) = greedy_rows(Agreeing(size), lambda: next(waiting, None), lambda _: (1, 400), {0})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert text.tokens == draft
    assert peak < logits.nbytes / 3


def test_a_cancelled_text_frees_its_row() -> None:
    scripts = ScriptedRows([[7] * 3 + [8] * 30 + [STOP], [1, 2, STOP], [3, STOP]])
    cancelled: set[int] = set()
    waiting = iter([(0, TextJob([0], NO_AUDIO, 50)), (1, TextJob([1], NO_AUDIO, 50)), (2, TextJob([2], NO_AUDIO, 50))])
    completed = []
    for key, _ in greedy_rows(
        scripts, lambda: next(waiting, None), lambda _: (2, 100), {STOP}, is_cancelled=lambda key: key in cancelled
    ):
        completed.append(key)
        cancelled.add(0)
    assert completed == [1, 2]
    assert len(scripts.fed[0]) < 10


def test_a_job_cancelled_while_waiting_is_not_started() -> None:
    scripts = ScriptedRows([[1, STOP], [2, STOP]])
    waiting = iter([(0, TextJob([0], NO_AUDIO, 50)), (1, TextJob([1], NO_AUDIO, 50))])
    done = list(
        greedy_rows(scripts, lambda: next(waiting, None), lambda _: (2, 100), {STOP}, is_cancelled=lambda key: key == 0)
    )
    assert [key for key, _ in done] == [1]
    assert scripts.fed[0] == []


def test_a_forced_loop_has_log_probabilities_of_chosen_tokens_only() -> None:
    forced = [1, 2] + [3] * 30
    looped, _ = decoded(TextJob(PROMPT, NO_AUDIO, 50, draft=Draft(forced, forced=len(forced))))
    assert looped.finish_reason == "repetition"
    assert looped.tokens == [1, 2, 3]
    assert looped.log_probabilities == []
    assert looped.confidence == 0.0
