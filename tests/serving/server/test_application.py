"""What surrounds the protocols: health, figures, limits, and clients of every kind."""

import asyncio
import json
import re
import socket
import threading

import aiohttp
import numpy as np
import pytest
from running_server import Doubling, RunningServer

pytestmark = pytest.mark.one_backend("NumPy alone")

PREDICT = "/v1/models/tiny:predict"


def one(n):
    return {"signature_name": "one", "inputs": n}


def is_open(port):
    with socket.socket() as other:
        return other.connect_ex(("127.0.0.1", port)) == 0


def test_health(server):
    for path in ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"):
        assert server.fetch(path)[0] == 200


def test_a_server_that_stops_is_alive_and_takes_nothing_new():
    with RunningServer(Doubling(), grpc=True) as server:
        server.service.is_stopping = True
        assert server.fetch("/healthz")[0] == 200
        for path in ("/readyz", "/v2/health/ready", "/v2/models/tiny/ready"):
            assert server.fetch(path)[0] == 503
        status, content, headers = server.fetch(PREDICT, one([1]))
        assert (status, headers["Retry-After"]) == (503, "1")
        assert json.loads(content) == {"error": "The server is stopping."}


def test_it_ends_when_what_came_before_is_answered():
    model = Doubling()
    model.go.clear()
    server = RunningServer(model)
    answers = []
    asking = threading.Thread(
        target=lambda: answers.append(server.ask(PREDICT, one([1])))
    )
    asking.start()
    assert model.began.wait(60)
    ending = threading.Thread(target=server.close)
    ending.start()
    while is_open(server.port):
        pass
    assert not answers
    model.go.set()
    asking.join()
    ending.join()
    assert answers == [(200, {"outputs": [2]})]


def test_more_than_the_queue_is_refused():
    model = Doubling()
    with RunningServer(model, max_rows=4, max_queue=4) as server:
        model.go.clear()
        answers = []
        asking = threading.Thread(
            target=lambda: answers.append(server.ask(PREDICT, one([1, 2, 3])))
        )
        asking.start()
        assert model.began.wait(60)
        status, content, headers = server.fetch(PREDICT, one([1, 2]))
        assert (status, headers["Retry-After"]) == (503, "1")
        assert "3 rows are under way" in json.loads(content)["error"]
        assert server.figures()["keras_imm_queue_rows"] == 3
        model.go.set()
        asking.join()
        assert answers == [(200, {"outputs": [2, 3, 4]})]
        assert server.figures()["keras_imm_queue_rows"] == 0


def test_what_takes_too_long_is_given_up():
    model = Doubling()
    with RunningServer(model, timeout_s=1.0) as server:
        model.go.clear()
        status, answer = server.ask(PREDICT, one([1]))
        assert status == 504
        assert "no answer within 1 seconds" in answer["error"]
        # And a body that does not come.
        with socket.create_connection(("127.0.0.1", server.port)) as half:
            head = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"
            half.sendall(head.encode())
            assert half.makefile("rb").readline().split()[1] == b"408"
        model.go.set()


def test_a_fault_is_no_answer_and_no_end(server):
    status, answer = server.ask(PREDICT, one([-2]))
    assert (status, answer) == (500, {"error": "The server failed; its log says why."})
    assert server.ask(PREDICT, one([1]))[0] == 200


def test_figures():
    with RunningServer(Doubling()) as server:
        for rows in (1, 3):
            assert server.ask(PREDICT, one([0] * rows))[0] == 200
        assert server.ask(PREDICT, "{")[0] == 400
        for path in ("/nowhere", "/v1/elsewhere"):
            assert server.fetch(path)[0] == 404
        status, text, headers = server.fetch("/metrics")
        figures = server.figures()
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert b"# TYPE keras_imm_request_seconds histogram" in text
    route = 'route="POST /v1/models/{name}:predict"'
    requests = "keras_imm_requests_total"
    assert figures[f'{requests}{{{route},status="200"}}'] == 2
    assert figures[f'{requests}{{{route},status="400"}}'] == 1
    assert figures[f'{requests}{{route="unknown",status="404"}}'] == 2
    assert figures[f"keras_imm_request_seconds_count{{{route}}}"] == 3
    assert figures["keras_imm_rows_total"] == 4
    assert figures["keras_imm_batch_rows_sum"] == 4
    assert figures["keras_imm_batch_rows_count"] == 2
    assert figures['keras_imm_batch_rows_bucket{le="1.0"}'] == 1


def test_the_page_has_the_names_of_the_labels():
    names = ("Bag", "Boot", "</script>")
    with RunningServer(Doubling(), class_names=names) as server:
        page = server.fetch("/")[1].decode()
    (settings,) = re.findall(r'<script id="settings"[^>]*>(.*?)</script>', page)
    assert json.loads(settings) == {"name": "tiny", "classNames": [*names]}


def test_500_at_once_with_bad_ones_slow_ones_and_halves(server):
    """Every answer is that of its own request."""
    rng = np.random.default_rng(1)
    numbers = [rng.integers(0, 2**62, 1 + i % 3).tolist() for i in range(500)]
    for i in range(0, 500, 20):
        numbers[i][0] = -1

    async def ask(session, n):
        async with session.post(server.url + PREDICT, json=one(n)) as response:
            return response.status, await response.json()

    async def trickle(n):
        """Sends a request byte by byte."""
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        for byte in message_of(n):
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)
        content = await reader.read()
        writer.close()
        head, _, body = content.partition(b"\r\n\r\n")
        return int(head.split()[1]), json.loads(body)

    async def leave(n):
        """Goes away in the middle of a request."""
        message = message_of(n)
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(message[: len(message) // 2])
        await writer.drain()
        writer.transport.abort()

    async def ask_all():
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            asked = [ask(session, n) for n in numbers]
            slow = [trickle(n) for n in numbers[1:20]]
            halves = [leave([7]) for _ in range(20)]
            answers = await asyncio.gather(*asked, *slow, *halves)
            return answers[: len(asked) + len(slow)]

    def message_of(n):
        body = json.dumps(one(n))
        return (
            f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}"
        ).encode()

    answers = asyncio.run(ask_all())
    for n, (status, answer) in zip(numbers + numbers[1:20], answers, strict=True):
        if n[0] == -1:
            assert (status, answer) == (400, {"error": "`n` must not be -1."})
        else:
            assert (status, answer) == (200, {"outputs": [k + 1 for k in n]})
    assert max(rows for _, rows in server.service.servable.passes) > 3
