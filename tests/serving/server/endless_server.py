"""`python -m keras_imm.serving` with a model whose passes never end."""

import sys
import threading

from running_server import Doubling

from keras_imm.serving.__main__ import main
from keras_imm.serving.server import loading


class Endless(Doubling):
    def run(self, name, inputs):
        threading.Event().wait()


if __name__ == "__main__":
    loading.load = lambda *_: Endless()
    sys.exit(main(["run", "endless", *sys.argv[1:]]))
