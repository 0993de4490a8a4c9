"""Flow matching: the baseline that IMM is compared with, on the same backbone."""

import keras
import numpy as np
from keras import ops


class NoisedBatches(keras.utils.PyDataset):
    """Turns batches `(x, labels)` into regression: `(x_t, t, labels)` to `ε − x`.

    x_t = (1 − t) x + t ε with t ~ U(0, 1) and ε ~ N(0, sigma_data²). A label becomes
    the null label `num_classes` with probability `label_dropout`.
    """

    def __init__(self, batches, num_classes, sigma_data, label_dropout, seed):
        super().__init__()
        self.batches = batches
        self.num_classes = num_classes
        self.sigma_data = sigma_data
        self.label_dropout = label_dropout
        self.seed = seed
        self.epoch = 0

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, step):
        x, labels = self.batches[step]
        rng = np.random.default_rng([self.seed, self.epoch, step])
        noise = self.sigma_data * rng.standard_normal(x.shape, "float32")
        t = rng.random(len(x), "float32")
        column = t.reshape(-1, *[1] * (x.ndim - 1))
        dropped = rng.random(len(x)) < self.label_dropout
        labels = np.where(dropped, self.num_classes, labels).astype("int32")
        return ((1 - column) * x + column * noise, t, labels), noise - x

    def on_epoch_end(self):
        self.batches.on_epoch_end()
        self.epoch += 1


class FlowMatching(keras.Model):
    """The velocity ε − x of `(x_t, t, labels)`; compile with the loss `"mse"`.

    Same input and output scaling as IMM with Euler-FM: the velocity is `sigma_data`
    times the network, which gets c_in(t) x_t and sees t in place of both times.
    """

    def __init__(self, backbone, sigma_data=0.5, time_scale=1000.0):
        super().__init__()
        self.backbone = backbone
        self.sigma_data = sigma_data
        self.time_scale = time_scale

    def call(self, inputs, training=None):
        x_t, t, labels = inputs
        norm = self.sigma_data * ops.sqrt((1 - t) ** 2 + t**2)
        norm = ops.reshape(norm, (-1, *[1] * (len(x_t.shape) - 1)))
        time = self.time_scale * t
        network_inputs = [x_t / norm, time, time, labels]
        return self.sigma_data * self.backbone(network_inputs, training=training)

    def generate(self, labels, num_steps, seed=0, batch_size=256):
        """Follows dx/dt = velocity from t = 1 to 0 in equal Euler steps."""
        labels = np.asarray(labels, "int32")
        shape = (len(labels), *self.backbone.image_shape)
        noise = np.random.default_rng(seed).standard_normal(shape, "float32")
        x = self.sigma_data * noise
        for step in range(num_steps, 0, -1):
            t = np.full(len(labels), step / num_steps, "float32")
            velocity = self.predict((x, t, labels), batch_size=batch_size, verbose=0)
            x = x - velocity / np.float32(num_steps)
        return x
