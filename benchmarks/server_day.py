"""A day of a server in ten minutes: what clients of every kind get, and what stays.

    python benchmarks/server_day.py --minutes=10

Serves the digits that come with the library by `python -m keras_imm.serving run`. Until
the time is up come, at random moments: requests of 1 to 16 rows; slow ones, whose bytes
trickle in; halves, whose client goes away before the end, or in the middle of the
answer; garbage, of which the right answer is an error; and now and then 500 at once.
Every right answer is known beforehand, for a seed and a label make one image (to one
level: passes of other sizes round differently). It prints how many of each kind
there were and were right, and what the server held at the start and at the end.
"""

import asyncio
import collections
import json
import os
import pathlib
import random
import re
import signal
import sys
import tempfile
import time

import numpy as np
from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_float("minutes", 10.0, "How long.", lower_bound=0.01)
flags.DEFINE_integer("clients", 16, "Clients beside the bursts.", lower_bound=1)
flags.DEFINE_integer("burst", 500, "Requests of a burst.", lower_bound=1)
flags.DEFINE_float("pause", 60.0, "Seconds between bursts.", lower_bound=0.01)
flags.DEFINE_integer("seed", 0, "Of what comes when.")

ROOT = pathlib.Path(__file__).resolve().parents[1]
PATH = "/v1/models/imm_digits:predict"
PAIRS = [(seed, label) for seed in range(20) for label in range(10)]
PATIENCE = 120.0
GARBAGE = {
    "no JSON": ("POST", PATH, b"{"),
    "other inputs": ("POST", PATH, b'{"inputs": {"x": [1]}}'),
    "another label": ("POST", PATH, b'{"inputs": {"seed": [1], "label": [77]}}'),
    "another model": ("POST", "/v1/models/other:predict", b"{}"),
    "another method": ("DELETE", PATH, b""),
    "another path": ("GET", "/etc/passwd", b""),
}


def head(method, path, size):
    return (
        f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {size}\r\n\r\n"
    ).encode()


def body_of(pairs):
    seeds, labels = zip(*pairs, strict=True)
    return json.dumps({"inputs": {"seed": seeds, "label": labels}}).encode()


async def answer_of(reader):
    """Status and body of an answer."""
    content = await asyncio.wait_for(reader.read(), PATIENCE)
    top, _, body = content.partition(b"\r\n\r\n")
    if b"chunked" in top.lower():
        raise ValueError("an answer in chunks, which this client does not read")
    return int(top.split(b" ", 2)[1]), body


class Day:
    """What is asked of one server, and the counts of what came out."""

    def __init__(self, port):
        self.port = port
        self.right, self.wrong = collections.Counter(), collections.Counter()
        self.examples, self.known = {}, {}
        self.moments = random.Random(FLAGS.seed)

    def note(self, kind, is_right, found=None):
        (self.right if is_right else self.wrong)[kind] += 1
        if not is_right:
            self.examples.setdefault(kind, str(found)[:200])

    async def open(self):
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def images(self, pairs, slowly=False):
        reader, writer = await self.open()
        try:
            body = body_of(pairs)
            message = head("POST", PATH, len(body)) + body
            if slowly:
                step = max(1, len(message) // 20)
                for start in range(0, len(message), step):
                    writer.write(message[start : start + step])
                    await writer.drain()
                    await asyncio.sleep(self.moments.uniform(0.0, 0.5))
            else:
                writer.write(message)
                await writer.drain()
            status, content = await answer_of(reader)
        finally:
            writer.close()
        if status != 200:
            raise ValueError(f"{status}: {content[:100]!r}")
        return np.array(json.loads(content)["outputs"])

    async def learn(self):
        """The image of every pair, each asked for alone."""
        for pair in PAIRS:
            self.known[pair] = (await self.images([pair]))[0]

    async def ask(self, kind, count, slowly=False):
        pairs = self.moments.choices(PAIRS, k=count)
        try:
            found = await self.images(pairs, slowly)
        except (
            OSError,
            ValueError,
            TimeoutError,
            asyncio.IncompleteReadError,
        ) as error:
            self.note(kind, False, f"{type(error).__name__}: {error}")
            return
        expected = np.stack([self.known[pair] for pair in pairs])
        is_right = found.shape == expected.shape
        difference = np.abs(found - expected).max() if is_right else "another shape"
        self.note(kind, is_right and difference <= 1, difference)

    async def leave(self, kind):
        """Sends half of a request, or does not wait for the answer."""
        try:
            _, writer = await self.open()
            body = body_of(self.moments.choices(PAIRS, k=8))
            message = head("POST", PATH, len(body)) + body
            half = len(message) // 2 if kind == "half a request" else len(message)
            writer.write(message[:half])
            await writer.drain()
            await asyncio.sleep(self.moments.uniform(0.0, 1.0))
            writer.transport.abort()
            self.note(kind, True)
        except OSError as error:
            self.note(kind, False, error)

    async def send_garbage(self, kind):
        method, path, body = GARBAGE[kind]
        try:
            reader, writer = await self.open()
            writer.write(head(method, path, len(body)) + body)
            await writer.drain()
            status, content = await answer_of(reader)
            writer.close()
            self.note(kind, 400 <= status < 500, f"{status} {content[:80]!r}")
        except (OSError, ValueError, TimeoutError) as error:
            self.note(kind, False, f"{type(error).__name__}: {error}")

    async def client(self, until):
        while time.monotonic() < until:
            choice = self.moments.random()
            if choice < 0.5:
                await self.ask("1 to 16 rows", self.moments.randint(1, 16))
            elif choice < 0.65:
                await self.ask("slowly", self.moments.randint(1, 8), slowly=True)
            elif choice < 0.75:
                await self.leave("half a request")
            elif choice < 0.85:
                await self.leave("gone before the answer")
            else:
                await self.send_garbage(self.moments.choice(list(GARBAGE)))
            await asyncio.sleep(self.moments.expovariate(2.0))

    async def bursts(self, until):
        while time.monotonic() < until:
            burst = [self.ask("at once", 1) for _ in range(FLAGS.burst)]
            await asyncio.gather(*burst)
            await asyncio.sleep(min(FLAGS.pause, max(0.0, until - time.monotonic())))

    async def run(self):
        until = time.monotonic() + 60 * FLAGS.minutes
        clients = [self.client(until) for _ in range(FLAGS.clients)]
        await asyncio.gather(self.bursts(until), *clients)


def held(pid):
    """Resident mebibytes, open files and threads of a process."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    resident = int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024
    threads = int(re.search(r"Threads:\s+(\d+)", status)[1])
    return f"{resident:.0f} MiB, {len(os.listdir(f'/proc/{pid}/fd'))} open files, " + (
        f"{threads} threads"
    )


async def day():
    with tempfile.TemporaryFile() as errors:
        server = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "keras_imm.serving", "run", "imm_digits", "--port=0"),
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        port = None
        async for line in server.stdout:
            if found := re.search(rb"http://\S+:(\d+)", line):
                port = int(found[1])
                break
        if port is None:
            errors.seek(0)
            raise RuntimeError(errors.read().decode()[-2000:])
        one = Day(port)
        await one.learn()
        print(f"at the start: {held(server.pid)}", flush=True)
        await one.run()
        await asyncio.sleep(2.0)
        print(f"at the end: {held(server.pid)}")
        server.send_signal(signal.SIGTERM)
        code = await asyncio.wait_for(server.wait(), PATIENCE)
    print("| what | right | wrong | such as |\n|---|---|---|---|")
    for kind in sorted(one.right | one.wrong):
        cells = one.right[kind], one.wrong[kind], one.examples.get(kind, "")
        print(f"| {kind} | {' | '.join(map(str, cells))} |")
    print(f"ended with {code} by SIGTERM")
    return bool(one.wrong) or code != 0


def main(_):
    sys.exit(int(asyncio.run(day())))


if __name__ == "__main__":
    app.run(main)
