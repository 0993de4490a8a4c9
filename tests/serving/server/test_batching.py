"""Requests that are answered together."""

import asyncio

import numpy as np
import pytest
from running_server import Doubling

from keras_imm.serving.server.batching import Batches
from keras_imm.serving.server.errors import RequestError

pytestmark = pytest.mark.one_backend("NumPy alone")


def ask_all(requests, then=lambda tasks: None, max_batch_size=8, **options):
    """Answers to (signature, rows), all but the first asked while it is computed."""
    model = Doubling()
    model.go.clear()

    async def ask():
        batches = Batches(model.run, max_batch_size, **options)
        tasks = [
            asyncio.create_task(batches(name, {"n": np.array(rows)}))
            for name, rows in requests
        ]
        await asyncio.to_thread(model.began.wait, 60)
        then(tasks)
        await asyncio.sleep(0)  # who is cancelled hears of it
        model.go.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert batches.rows == 0
        batches.close()
        return answers

    return asyncio.run(ask()), model.passes


def assert_right(requests, answers):
    for (_, rows), answer in zip(requests, answers, strict=True):
        np.testing.assert_array_equal(answer["m"], np.array(rows) + 1)


def test_what_comes_together_is_computed_together():
    requests = [("one", [0]), *[("text", [i, i]) for i in range(1, 4)], ("one", [7])]
    answers, passes = ask_all(requests)
    assert [a["m"].tolist() for a in (answers[0], answers[-1])] == [[1], [8]]
    assert answers[2]["t_bytes"].tolist() == [b"<2>", b"<2>"]
    # Those of "text" in one pass; those of "one" were asked before the first began.
    assert passes == [("one", 2), ("text", 6)]


def test_passes_have_at_most_so_many_rows():
    requests = [("one", [i] * 3) for i in range(5)] + [("one", list(range(20)))]
    answers, passes = ask_all(requests)
    assert_right(requests, answers)
    assert max(rows for _, rows in passes) <= 8
    assert len(passes) < 8


def test_passes_of_one_row_join_nothing():
    requests = [("one", [i]) for i in range(5)]
    answers, passes = ask_all(requests, max_batch_size=1)
    assert_right(requests, answers)
    assert passes == [("one", 1)] * 5


def test_one_at_fault_does_no_harm():
    answers, _ = ask_all([("one", [1]), ("one", [-1]), ("one", [2]), ("one", [-2])])
    assert [answers[0]["m"].tolist(), answers[2]["m"].tolist()] == [[2], [3]]
    assert str(answers[1]) == "`n` must not be -1."
    assert isinstance(answers[3], ZeroDivisionError)


def test_who_has_gone_is_not_computed():
    requests = [("one", [0]), ("text", [1]), ("text", [2]), ("text", [3])]
    answers, passes = ask_all(requests, lambda tasks: tasks[2].cancel())
    assert isinstance(answers[2], asyncio.CancelledError)
    assert answers[3]["t_bytes"].tolist() == [b"<3>"]
    assert passes == [("one", 1), ("text", 2)]


def test_more_rows_than_the_queue_takes_are_refused():
    requests = [("one", [0] * 8), ("text", [1] * 4), ("text", [2]), ("text", [3])]
    answers, _ = ask_all(requests, max_queue=13)
    assert isinstance(answers[3], RequestError)
    assert answers[3].code == "UNAVAILABLE" and answers[3].status == 503
    assert answers[2]["t_bytes"].tolist() == [b"<2>"]


def test_a_full_pass_does_not_wait():
    """It would be for an hour."""
    requests = [("one", [i]) for i in range(8)]
    answers, passes = ask_all(requests, max_delay=3600.0)
    assert_right(requests, answers)
    assert passes == [("one", 8)]


def test_the_first_of_a_pass_waits_for_others():
    model, seen = Doubling(), []

    async def ask():
        batches = Batches(model.run, 8, max_delay=3600.0, on_pass=seen.append)
        first = asyncio.create_task(batches("one", {"n": np.arange(3)}))
        for _ in range(10):  # nothing else is to be done but to wait
            await asyncio.sleep(0)
        assert not model.began.is_set()
        second = asyncio.create_task(batches("one", {"n": np.arange(5)}))
        answers = await asyncio.gather(first, second)
        batches.close()
        return answers

    answers = asyncio.run(ask())
    assert [a["m"].tolist() for a in answers] == [[1, 2, 3], [1, 2, 3, 4, 5]]
    assert model.passes == [("one", 8)] and seen == [8]


def test_a_delay_ends():
    answers, passes = ask_all([("one", [1])], max_delay=0.001)
    assert_right([("one", [1])], answers)
    assert passes == [("one", 1)]
