"""Keras's hooks under PyTorch."""

from typing import Any

import keras

from keras_imm.backend.checked_data import source_of
from keras_imm.backend.torch.devices import computes_on_cuda
from keras_imm.backend.torch.parallel import check_lengths


class TrainableModel(keras.Model):
    """A `keras.Model` that trains by the `TrainStep` that it is given.

    It overrides Keras's hooks and calls the step and Keras, nothing else.
    """

    step = None

    def hold_values(self) -> None:
        """Nothing: variables have their values at any time."""

    def train_step(self, data: Any) -> dict:
        if not self.built:
            x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
            self.build(tuple(x.shape))
        # Walks through all layers, so it is asked for once.
        return self.step.train(data, self.trainable_variables, self)

    def test_step(self, data: Any) -> dict:
        return self.step.test(data)

    def fit(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        check_lengths(source_of(x))
        if self.step is not None:
            self.step.forget_processes()  # the first step makes them equal again
        return super().fit(x, *args, **kwargs)

    def evaluate(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        check_lengths(source_of(x))
        return super().evaluate(x, *args, **kwargs)

    def make_train_function(self, force: bool = False) -> None:
        if self.step is not None and (self.train_function is None or force):
            self.step.forget_graph()
        super().make_train_function(force)

    def _should_torch_compile(self) -> bool:
        """No: Keras would compile its own bookkeeping along with the step."""
        return False

    def _resolve_auto_jit_compile(self) -> bool:
        """What `jit_compile="auto"` means: on CUDA compiling pays, and has a compiler.

        On a CPU it needs a C++ compiler and minutes.
        """
        return computes_on_cuda()

    _use_torch_compile = _should_torch_compile  # its name from Keras 3.16 on

    def _initialize_ddp(self) -> None:
        """Nothing: the step reduces gradients, of the weights that it trains.

        From 3.16 on Keras wraps every model in `DistributedDataParallel` as soon as
        there are several processes.
        """
