"""Runs an ONNX file in Chromium by onnxruntime-web, and compares it with Python's.

    npm pack onnxruntime-web@1.30.0 && tar xzf onnxruntime-web-1.30.0.tgz
    python benchmarks/onnx_in_browser.py --onnx=digits.onnx --runtime=package/dist

The backend is WebAssembly, of one thread. Inputs are made up for the names and types
that the graph has. It takes Chromium and its driver (`apt-get install chromium
chromium-driver`), selenium and onnxruntime.
"""

import base64
import http.server
import json
import pathlib
import shutil
import threading

import numpy as np
import onnxruntime
from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_string("onnx", None, "The file; its weights may lie in others beside it.")
flags.DEFINE_string("runtime", None, "The folder `dist` of onnxruntime-web.")
flags.DEFINE_integer("rows", 4, "Rows of the batch.", lower_bound=1)
flags.DEFINE_integer("repeats", 10, "Calls that are timed.", lower_bound=1)
flags.mark_flags_as_required(["onnx", "runtime"])

ARRAYS = {"int64": "BigInt64Array", "int32": "Int32Array", "float32": "Float32Array"}
PAGE = """<!doctype html><script src="/runtime/ort.wasm.min.js"></script><script>
ort.env.wasm.wasmPaths = "/runtime/";
ort.env.wasm.numThreads = 1;
async function run(inputs, data, repeats) {
  const options = {executionProviders: ["wasm"], externalData: data};
  const session = await ort.InferenceSession.create("/model/MODEL", options);
  const feed = {};
  for (const [name, {kind, type, shape, bytes}] of Object.entries(inputs)) {
    const raw = Uint8Array.from(atob(bytes), (c) => c.charCodeAt(0));
    feed[name] = new ort.Tensor(type, new globalThis[kind](raw.buffer), shape);
  }
  let image = (await session.run(feed)).image;
  const times = [];
  for (let i = 0; i < repeats; i++) {
    const start = performance.now();
    image = (await session.run(feed)).image;
    times.push(performance.now() - start);
  }
  times.sort((a, b) => a - b);
  const median = times[Math.floor(repeats / 2)];
  return {type: image.type, shape: image.dims, values: [...image.data], median};
}
</script>"""
CALL = """const [inputs, data, repeats, done] = arguments;
run(inputs, data, repeats).then(done, (error) => done({error: String(error)}));"""


class Handler(http.server.SimpleHTTPRequestHandler):
    """The page, the runtime and the model's folder."""

    def translate_path(self, path):
        _, place, name = path.split("/", 2)
        folders = {"runtime": FLAGS.runtime, "model": pathlib.Path(FLAGS.onnx).parent}
        return str(pathlib.Path(folders[place], pathlib.PurePath(name).name))

    def do_GET(self):
        if self.path.count("/") == 2:
            return super().do_GET()
        if self.path != "/":
            return self.send_error(404)
        page = PAGE.replace("MODEL", pathlib.Path(FLAGS.onnx).name).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, *_):
        pass


def inputs_of(session, rows):
    """Arrays for the inputs of a graph."""
    rng = np.random.default_rng(0)
    makers = {
        "noise": lambda shape: rng.standard_normal(shape, "float32"),
        "seed": lambda shape: rng.integers(-(2**63), 2**63 - 1, shape),
        "label": lambda shape: np.arange(shape[0], dtype="int32") % 3,
        "guidance_scale": lambda shape: np.full(shape, 1.5, "float32"),
        "num_steps": lambda shape: np.full(shape, 2, "int32"),
    }
    return {
        one.name: makers[one.name]((rows, *one.shape[1:]))
        for one in session.get_inputs()
    }


def in_browser(inputs, data):
    """What the page makes of them."""
    from selenium import webdriver

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    browser = webdriver.Chrome(options, service)
    try:
        browser.set_script_timeout(600)
        browser.get(f"http://127.0.0.1:{server.server_port}/")
        print(browser.capabilities["browserVersion"], end=": ")
        return browser.execute_async_script(CALL, inputs, data, FLAGS.repeats)
    finally:
        browser.quit()
        server.shutdown()


def main(_):
    session = onnxruntime.InferenceSession(FLAGS.onnx)
    inputs = inputs_of(session, FLAGS.rows)
    (expected,) = session.run(["image"], inputs)
    given = {
        name: {
            "kind": ARRAYS[array.dtype.name],
            "type": array.dtype.name,
            "shape": list(array.shape),
            "bytes": base64.b64encode(array.tobytes()).decode(),
        }
        for name, array in inputs.items()
    }
    path = pathlib.Path(FLAGS.onnx)
    data = path.with_name(f"{path.name}.data")
    files = (
        [{"path": data.name, "data": f"/model/{data.name}"}] if data.exists() else []
    )
    found = in_browser(given, files)
    if "error" in found:
        raise SystemExit(found["error"])
    image = np.array(found["values"]).reshape(found["shape"])
    assert image.shape == expected.shape
    error = np.abs(image - expected.astype("float64"))
    print(
        json.dumps(
            {
                "type": found["type"],
                "shape": found["shape"],
                "milliseconds": round(found["median"], 2),
                "largest difference": float(error.max()),
                "values that differ": float(np.mean(error > 0)),
            }
        )
    )


if __name__ == "__main__":
    app.run(main)
