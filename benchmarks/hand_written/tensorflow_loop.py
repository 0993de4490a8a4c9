"""IMM in plain TensorFlow: one `tf.function`, with XLA or without."""

import itertools
import math

import tensorflow as tf

from hand_written.settings import BETA_1, BETA_2, EPSILON

FIXED = (
    "t_embedding/frequencies",
    "s_embedding/frequencies",
    "position_embedding/table",
)


def dense(w, name, x):
    return tf.matmul(x, w[f"{name}/kernel"]) + w[f"{name}/bias"]


def time_embedding(w, name, times):
    angles = times[:, None] * w[f"{name}/frequencies"]
    features = tf.concat([tf.cos(angles), tf.sin(angles)], -1)
    hidden = tf.nn.silu(dense(w, f"{name}/hidden_dense", features))
    return dense(w, f"{name}/output_dense", hidden)


def modulated(h, shift, scale):
    mean, variance = tf.nn.moments(h, -1, keepdims=True)
    return (h - mean) * tf.math.rsqrt(variance + 1e-6) * (1 + scale) + shift


def block(w, name, h, c, num_heads):
    modulation = tf.split(dense(w, f"{name}/modulation", c), 6, -1)
    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = modulation
    _, tokens, size = h.shape
    qkv = dense(w, f"{name}/attention/qkv", modulated(h, shift_1, scale_1))
    qkv = tf.reshape(qkv, (-1, tokens, 3, num_heads, size // num_heads))
    q, k, v = tf.unstack(tf.transpose(qkv, (2, 0, 3, 1, 4)))
    scores = tf.matmul(q, k, transpose_b=True) / math.sqrt(size // num_heads)
    attended = tf.matmul(tf.nn.softmax(scores), v)
    attended = tf.reshape(tf.transpose(attended, (0, 2, 1, 3)), (-1, tokens, size))
    h = h + gate_1 * dense(w, f"{name}/attention/projection", attended)
    hidden = dense(w, f"{name}/mlp_hidden", modulated(h, shift_2, scale_2))
    hidden = tf.nn.gelu(hidden, approximate=True)
    return h + gate_2 * dense(w, f"{name}/mlp_output", hidden)


def network(settings, w, x, c_t, c_s, labels):
    """G of a DiT."""
    s = settings
    rows, columns = s.grid
    p, channels = s.patch_size, s.image_shape[-1]
    c = time_embedding(w, "t_embedding", c_t) + time_embedding(w, "s_embedding", c_s)
    c = c + tf.gather(w["label_embedding/embeddings"], labels)
    c = tf.nn.silu(c)[:, None]
    patches = tf.reshape(x, (-1, rows, p, columns, p, channels))
    patches = tf.transpose(patches, (0, 1, 3, 2, 4, 5))
    patches = tf.reshape(patches, (-1, rows * columns, p * p * channels))
    h = dense(w, "patch_embedding/projection", patches) + w["position_embedding/table"]
    for i in range(s.depth):
        h = block(w, f"block_{i}", h, c, s.num_heads)
    shift, scale = tf.split(dense(w, "final_layer/modulation", c), 2, -1)
    patches = dense(w, "final_layer/projection", modulated(h, shift, scale))
    patches = tf.reshape(patches, (-1, rows, columns, p, p, channels))
    patches = tf.transpose(patches, (0, 1, 3, 2, 4, 5))
    return tf.reshape(patches, tf.shape(x))


def per_sample(v):
    return v[:, None, None, None]


def flow_map(settings, w, x, t, s, labels, guidance=None):
    """x - (t - s) sigma_d G(x / norm, ...): Euler-FM."""
    sigma_d, scale = settings.sigma_data, settings.time_scale
    norm = tf.sqrt((1 - t) ** 2 + t**2) * sigma_d
    inputs = [x / per_sample(norm), scale * t, scale * s, labels]
    if guidance is not None:
        null = tf.fill(tf.shape(labels), settings.num_classes)
        pairs = zip(inputs, [*inputs[:3], null], strict=True)
        inputs = [tf.concat(pair, 0) for pair in pairs]
    g = network(settings, w, *inputs)
    if guidance is not None:
        g, unguided = tf.split(g, 2)
        g = guidance * g + (1 - guidance) * unguided
    return x - per_sample((t - s) * sigma_d) * g


def loss_of_output(settings, y, target, s, t):
    o = settings
    y, target = (tf.reshape(v, (-1, o.group_size, o.dimension)) for v in (y, target))
    s, t = s[:: o.group_size], t[:: o.group_size]
    scale = 1 / tf.maximum((t - s) * o.sigma_data, 1e-6)

    def k(a, b):
        squares = tf.reduce_sum(tf.square(a[:, :, None] - b[:, None]), -1)
        distance = tf.sqrt(tf.maximum(squares, 1e-16))
        return tf.math.expm1(-scale[:, None, None] * distance / o.dimension)

    pairs = k(y, y) + k(target, target) - 2 * k(y, target)
    mmd = tf.reduce_mean(pairs, (1, 2))
    weight = t * (1 - t) ** (o.a - 1) / (t**2 + math.exp(-o.b) * (1 - t) ** 2)
    return tf.reduce_mean(weight / (t**2 + (1 - t) ** 2) * mmd)


def draw(settings, x, labels):
    o = settings
    batch = tf.shape(x)[0]
    groups = [batch // o.group_size]
    t = tf.random.uniform(groups, maxval=o.max_time)
    s = t * tf.random.uniform(groups)
    earlier = tf.maximum(t / (1 - t) - o.eta_decrement, 0)
    r = tf.minimum(earlier / (1 + earlier), t - o.min_gap)
    r = tf.maximum(tf.minimum(r, t * (1 - 2**-23)), s)
    s, r, t = (tf.repeat(v, o.group_size) for v in (s, r, t))
    noise = o.sigma_data * tf.random.normal(tf.shape(x))
    x_t, x_r = (per_sample(1 - v) * x + per_sample(v) * noise for v in (t, r))
    dropped = tf.random.uniform([batch]) < o.label_dropout
    return x_t, x_r, s, r, t, tf.where(dropped, o.num_classes, labels)


class Loop:
    """One model in training."""

    def __init__(self, settings, weights, jit_compile=False):
        self.settings = settings
        self.fixed = {name: tf.constant(weights[name]) for name in FIXED}
        self.trained = {
            name: tf.Variable(v) for name, v in weights.items() if name not in FIXED
        }
        variables = list(self.trained.values())
        self.averages = [tf.Variable(v) for v in variables]
        self.first = [tf.Variable(tf.zeros_like(v)) for v in variables]
        self.second = [tf.Variable(tf.zeros_like(v)) for v in variables]
        self.count = tf.Variable(0)
        self.total = tf.Variable(0.0)

        @tf.function(jit_compile=jit_compile)
        def step(x, labels):
            self.total.assign_add(self._update(draw(settings, x, labels)))

        self.step = step
        self.update = tf.function(self._update, jit_compile=jit_compile)

        @tf.function(jit_compile=jit_compile)
        def jump(x, t, s, labels, guidance):
            t, s = (tf.fill([tf.shape(x)[0]], v) for v in (t, s))
            w = self.trained | self.fixed
            return flow_map(settings, w, x, t, s, labels, guidance)

        self.jump = jump

    def _update(self, particles):
        """One step of Adam and of the averages; returns the loss."""
        x_t, x_r, s, r, t, labels = particles
        w = self.trained | self.fixed
        target = flow_map(self.settings, w, x_r, r, s, labels)
        variables = list(self.trained.values())
        with tf.GradientTape() as tape:
            y = flow_map(self.settings, w, x_t, t, s, labels)
            loss = loss_of_output(self.settings, y, target, s, t)
        gradients = [tf.convert_to_tensor(g) for g in tape.gradient(loss, variables)]

        momentum = tf.where(self.count > 0, self.settings.ema_momentum, 0.0)
        step = tf.cast(self.count.assign_add(1), "float32")
        rate = self.settings.learning_rate
        rate = rate * tf.sqrt(1 - BETA_2**step) / (1 - BETA_1**step)
        slots = zip(
            variables, gradients, self.first, self.second, self.averages, strict=True
        )
        for w, g, m, v, average in slots:
            m.assign(BETA_1 * m + (1 - BETA_1) * g)
            v.assign(BETA_2 * v + (1 - BETA_2) * g * g)
            w.assign_sub(rate * m / (tf.sqrt(v) + EPSILON))
            average.assign(momentum * average + (1 - momentum) * w)
        return loss

    def epoch(self, batches):
        """Trains on a `tf.data.Dataset` of (images, labels); returns the mean loss."""
        self.total.assign(0.0)
        for x, labels in batches:
            self.step(x, labels)
        return float(self.total) / len(batches)

    def losses(self, particles, steps):
        """Losses of repeated steps on particles given as NumPy arrays."""
        particles = [tf.constant(p) for p in particles]
        return [float(self.update(particles)) for _ in range(steps)]

    def sample(self, labels, num_steps, guidance=None, noise=None):
        """Pushforward sampling on a uniform grid; returns a NumPy array."""
        labels = tf.constant(labels)
        if noise is None:
            noise = tf.random.normal((len(labels), *self.settings.image_shape))
        x = noise * self.settings.sigma_data
        if guidance is not None:
            guidance = tf.constant(guidance)
        times = tf.linspace(self.settings.max_time, 0.0, num_steps + 1)
        for t, s in itertools.pairwise(tf.unstack(times)):
            x = self.jump(x, t, s, labels, guidance)
        return x.numpy()

    def weights(self):
        """Trained weights and their averages, by the path in the Keras backbone."""
        averages = zip(self.trained, self.averages, strict=True)
        return {
            **{name: v.numpy() for name, v in self.trained.items()},
            **{f"average/{name}": v.numpy() for name, v in averages},
        }
