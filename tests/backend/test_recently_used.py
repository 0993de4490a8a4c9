"""What is kept of compiled functions: those used last, up to a number."""

import threading

from keras_imm.backend.recently_used import RecentlyUsed


def test_the_least_recently_used_value_goes():
    kept = RecentlyUsed(kept=3)
    for key in "abc":
        kept.put(key, key.upper())
    assert kept.get("a") == "A"  # used again: "b" is now the oldest
    kept.put("d", "D")
    assert [key in kept for key in "abcd"] == [True, False, True, True]
    assert kept.get("b") is None and len(kept) == 3


def test_a_value_is_made_once_while_it_is_kept():
    kept, made = RecentlyUsed(kept=2), []

    def ask(key):
        return kept.get_or_make(key, lambda: made.append(key) or 10 * key)

    assert [ask(key) for key in (1, 1, 2, 1, 3, 1, 2)] == [10, 10, 20, 10, 30, 10, 20]
    assert made == [1, 2, 3, 2]


def test_a_new_value_of_a_key_takes_the_place_of_the_old():
    kept = RecentlyUsed(kept=2)
    for key, value in (("a", 1), ("b", 2), ("a", 3), ("c", 4)):
        kept.put(key, value)
    assert (kept.get("a"), kept.get("b"), kept.get("c")) == (3, None, 4)


def test_threads_share_it():
    kept, failures = RecentlyUsed(kept=2), []

    def work(start):
        try:
            for i in range(3000):
                key = (start + i) % 5
                assert kept.get_or_make(key, lambda key=key: key + 1) == key + 1
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and len(kept) <= 2
