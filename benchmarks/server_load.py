"""A server under load: requests per second and percentiles, with and without batching.

    KERAS_BACKEND=torch python benchmarks/server_load.py
    python benchmarks/server_load.py --model=served/digits --clients=1,64 --seconds=30

Starts `python -m keras_imm.serving run` in a process of its own, once with passes of up
to --max_batch_size rows and once with passes of one. Each client asks for one image,
with a seed of its own, waits for it and asks again; the first tenth of the time is not
counted. Prints a Markdown table; "rows of a pass" is the mean, by the
server's own figures. The clients share the machine with the server.
"""

import asyncio
import json
import os
import pathlib
import re
import signal
import sys
import time

import aiohttp
import numpy as np
from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_string("model", "imm_digits", "What `run` serves.")
flags.DEFINE_integer("num_steps", 2, "Steps of the sampler.", lower_bound=1)
flags.DEFINE_list("clients", "1,16,200", "Clients at once.")
flags.DEFINE_float("seconds", 10.0, "Seconds of each.", lower_bound=0.1)
flags.DEFINE_integer("max_batch_size", 64, "Rows of a pass, with batching.", 2)

ROOT = pathlib.Path(__file__).resolve().parents[1]
NAME = "served"
PATH = f"/v1/models/{NAME}:predict"


class Load:
    """Clients of a server at `url`."""

    def __init__(self, session, url):
        self.session = session
        self.url = url
        self.answered = []

    async def measure(self, clients):
        """Requests per second, percentiles in milliseconds, and rows of a pass."""
        self.answered = []
        start = time.perf_counter()
        counted, end = start + 0.1 * FLAGS.seconds, start + FLAGS.seconds
        before = await self.passes()
        await asyncio.gather(*(self.client(i, end) for i in range(clients)))
        rows, passes = np.subtract(await self.passes(), before)
        answered = [pair for pair in self.answered if pair[1] >= counted]
        in_time = sum(ended <= end for _, ended in answered)
        seconds = [ended - began for began, ended in answered]
        half, most = np.percentile(seconds, [50, 99]) * 1000
        return in_time / (end - counted), half, most, rows / passes

    async def client(self, index, end):
        seed = index * 1_000_000
        while (began := time.perf_counter()) < end:
            await self.ask(seed)
            self.answered.append((began, time.perf_counter()))
            seed += 1

    async def ask(self, seed):
        body = {
            "signature_name": f"generate_{FLAGS.num_steps}_steps",
            "inputs": {"seed": [seed], "label": [seed % 10]},
        }
        async with self.session.post(self.url + PATH, json=body) as response:
            content = await response.read()
            if response.status != 200:
                raise RuntimeError(f"{response.status}: {content[:200]!r}")
        return json.loads(content)["outputs"]

    async def passes(self):
        """Rows and passes that the server has counted."""
        async with self.session.get(self.url + "/metrics") as response:
            text = await response.text()
        return [
            float(re.search(rf"^keras_imm_batch_rows_{name} (\S+)", text, re.M)[1])
            for name in ("sum", "count")
        ]


async def measure(batch_size):
    """Prints the rows of the table for passes of up to so many rows."""
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "keras_imm.serving", "run", FLAGS.model),
        *("--port=0", f"--name={NAME}", f"--max_batch_size={batch_size}"),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        async for line in server.stdout:
            if found := re.search(rb"http://\S+:\d+", line):
                url = found[0].decode()
                break
        else:
            raise RuntimeError("The server did not start.")
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            load = Load(session, url)
            await load.ask(0)
            for clients in map(int, FLAGS.clients):
                rate, half, most, rows = await load.measure(clients)
                batching = f"up to {batch_size}" if batch_size > 1 else "none"
                print(
                    f"| {clients} | {batching} | {rate:.1f} | {half:.1f} | {most:.1f} "
                    f"| {rows:.1f} |",
                    flush=True,
                )
    finally:
        if server.returncode is None:
            server.send_signal(signal.SIGTERM)
        await server.wait()


def main(_):
    print("| clients | batching | requests / s | 50% ms | 99% ms | rows of a pass |")
    print("|---|---|---|---|---|---|")
    for batch_size in (FLAGS.max_batch_size, 1):
        asyncio.run(measure(batch_size))


if __name__ == "__main__":
    app.run(main)
