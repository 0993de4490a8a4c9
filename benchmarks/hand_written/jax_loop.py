"""IMM in plain JAX: one jitted function of a dictionary of weights."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from hand_written.settings import BETA_1, BETA_2, EPSILON

FIXED = (
    "t_embedding/frequencies",
    "s_embedding/frequencies",
    "position_embedding/table",
)


def dense(w, name, x):
    return x @ w[f"{name}/kernel"] + w[f"{name}/bias"]


def time_embedding(w, name, times, dtype):
    angles = times[:, None] * w[f"{name}/frequencies"]
    features = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1).astype(dtype)
    hidden = jax.nn.silu(dense(w, f"{name}/hidden_dense", features))
    return dense(w, f"{name}/output_dense", hidden)


def modulated(h, shift, scale):
    mean = h.mean(-1, keepdims=True)
    variance = jnp.square(h - mean).mean(-1, keepdims=True)
    return (h - mean) * jax.lax.rsqrt(variance + 1e-6) * (1 + scale) + shift


def block(w, name, h, c, num_heads):
    modulation = jnp.split(dense(w, f"{name}/modulation", c), 6, -1)
    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = modulation
    batch, tokens, _ = h.shape
    qkv = dense(w, f"{name}/attention/qkv", modulated(h, shift_1, scale_1))
    q, k, v = jnp.moveaxis(qkv.reshape(batch, tokens, 3, num_heads, -1), 2, 0)
    attended = jax.nn.dot_product_attention(q, k, v).reshape(h.shape)
    h = h + gate_1 * dense(w, f"{name}/attention/projection", attended)
    hidden = dense(w, f"{name}/mlp_hidden", modulated(h, shift_2, scale_2))
    return h + gate_2 * dense(w, f"{name}/mlp_output", jax.nn.gelu(hidden))


def network(settings, w, x, c_t, c_s, labels):
    """G of a DiT, float32."""
    s = settings
    dtype = jnp.bfloat16 if s.half else jnp.float32
    w = {name: v if "frequencies" in name else v.astype(dtype) for name, v in w.items()}
    rows, columns = s.grid
    p, channels = s.patch_size, s.image_shape[-1]
    c = time_embedding(w, "t_embedding", c_t, dtype)
    c = c + time_embedding(w, "s_embedding", c_s, dtype)
    c = jax.nn.silu(c + w["label_embedding/embeddings"][labels])[:, None]
    patches = x.astype(dtype).reshape(-1, rows, p, columns, p, channels)
    patches = patches.swapaxes(2, 3).reshape(len(x), rows * columns, -1)
    h = dense(w, "patch_embedding/projection", patches) + w["position_embedding/table"]
    for i in range(s.depth):
        h = block(w, f"block_{i}", h, c, s.num_heads)
    shift, scale = jnp.split(dense(w, "final_layer/modulation", c), 2, -1)
    patches = dense(w, "final_layer/projection", modulated(h, shift, scale))
    patches = patches.reshape(-1, rows, columns, p, p, channels).swapaxes(2, 3)
    return patches.reshape(x.shape).astype(jnp.float32)


def per_sample(v):
    return v[:, None, None, None]


def flow_map(settings, w, x, t, s, labels, guidance=None):
    """x - (t - s) sigma_d G(x / norm, ...): Euler-FM."""
    sigma_d, scale = settings.sigma_data, settings.time_scale
    norm = jnp.sqrt((1 - t) ** 2 + t**2) * sigma_d
    inputs = [x / per_sample(norm), scale * t, scale * s, labels]
    if guidance is not None:
        null = jnp.full_like(labels, settings.num_classes)
        pairs = zip(inputs, [*inputs[:3], null], strict=True)
        inputs = [jnp.concatenate(pair) for pair in pairs]
    g = network(settings, w, *inputs)
    if guidance is not None:
        g, unguided = jnp.split(g, 2)
        g = guidance * g + (1 - guidance) * unguided
    return x - per_sample((t - s) * sigma_d) * g


def imm_loss(trained, fixed, settings, x_t, x_r, s, r, t, labels):
    w, o = trained | fixed, settings
    target = jax.lax.stop_gradient(flow_map(o, w, x_r, r, s, labels))
    y = flow_map(o, w, x_t, t, s, labels)
    y, target = (v.reshape(-1, o.group_size, o.dimension) for v in (y, target))
    s, t = s[:: o.group_size], t[:: o.group_size]
    scale = 1 / jnp.maximum((t - s) * o.sigma_data, 1e-6)

    def k(a, b):
        squares = jnp.square(a[:, :, None] - b[:, None]).sum(-1)
        distance = jnp.sqrt(jnp.maximum(squares, 1e-16))
        return jnp.expm1(-scale[:, None, None] * distance / o.dimension)

    mmd = (k(y, y) + k(target, target) - 2 * k(y, target)).mean((1, 2))
    weight = t * (1 - t) ** (o.a - 1) / (t**2 + math.exp(-o.b) * (1 - t) ** 2)
    return (weight / (t**2 + (1 - t) ** 2) * mmd).mean()


def draw(settings, key, x, labels):
    o, batch = settings, len(x)
    groups = (batch // o.group_size,)
    keys = jax.random.split(key, 4)
    t = jax.random.uniform(keys[0], groups, maxval=o.max_time)
    s = t * jax.random.uniform(keys[1], groups)
    earlier = jnp.maximum(t / (1 - t) - o.eta_decrement, 0)
    r = jnp.minimum(earlier / (1 + earlier), t - o.min_gap)
    r = jnp.maximum(jnp.minimum(r, t * (1 - 2**-23)), s)
    s, r, t = (jnp.repeat(v, o.group_size) for v in (s, r, t))
    noise = o.sigma_data * jax.random.normal(keys[2], x.shape)
    x_t, x_r = (per_sample(1 - v) * x + per_sample(v) * noise for v in (t, r))
    dropped = jax.random.uniform(keys[3], (batch,)) < o.label_dropout
    return x_t, x_r, s, r, t, jnp.where(dropped, o.num_classes, labels)


def update(settings, fixed, state, particles):
    """One step of Adam and of the averages; returns the new state and the loss."""
    trained, averages, first, second, count = state
    loss, gradients = jax.value_and_grad(imm_loss)(trained, fixed, settings, *particles)
    rate = settings.learning_rate
    rate = rate * jnp.sqrt(1 - BETA_2 ** (count + 1)) / (1 - BETA_1 ** (count + 1))
    first = jax.tree.map(lambda m, g: BETA_1 * m + (1 - BETA_1) * g, first, gradients)
    second = jax.tree.map(
        lambda v, g: BETA_2 * v + (1 - BETA_2) * g * g, second, gradients
    )
    trained = jax.tree.map(
        lambda w, m, v: w - rate * m / (jnp.sqrt(v) + EPSILON), trained, first, second
    )
    momentum = jnp.where(count > 0, settings.ema_momentum, 0.0)
    averages = jax.tree.map(
        lambda a, w: momentum * a + (1 - momentum) * w, averages, trained
    )
    return (trained, averages, first, second, count + 1), loss


class Loop:
    """One model in training."""

    def __init__(self, settings, weights):
        self.settings = settings
        weights = {name: jnp.asarray(v) for name, v in weights.items()}
        self.fixed = {name: weights[name] for name in FIXED}
        trained = {n: v for n, v in weights.items() if n not in FIXED}
        zeros = jax.tree.map(jnp.zeros_like, trained)
        self.state = (
            trained,
            jax.tree.map(jnp.copy, trained),
            zeros,
            jax.tree.map(jnp.copy, zeros),
            jnp.zeros((), "int32"),
        )
        self.key = jax.random.key(0)
        self.update = jax.jit(functools.partial(update, settings, self.fixed))

        @jax.jit
        def jump(trained, x, t, s, labels, guidance):
            t, s = (jnp.full(len(x), v) for v in (t, s))
            return flow_map(settings, trained | self.fixed, x, t, s, labels, guidance)

        self.jump = jump

        @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
        def step(state, key, total, x, labels):
            key, own = jax.random.split(key)
            particles = draw(settings, own, x, labels)
            state, loss = update(settings, self.fixed, state, particles)
            return state, key, total + loss

        self.step = step

    def epoch(self, batches):
        """Trains on (images, labels) batches of NumPy; returns the mean loss."""
        total = jnp.zeros(())
        for x, labels in batches:
            self.state, self.key, total = self.step(
                self.state, self.key, total, x, labels
            )
        return float(total) / len(batches)

    def losses(self, particles, steps):
        """Losses of repeated steps on particles given as NumPy arrays."""
        losses = []
        for _ in range(steps):
            self.state, loss = self.update(self.state, particles)
            losses.append(float(loss))
        return losses

    def sample(self, labels, num_steps, guidance=None, noise=None):
        """Pushforward sampling on a uniform grid; returns a NumPy array."""
        labels = jnp.asarray(labels)
        if noise is None:
            self.key, own = jax.random.split(self.key)
            noise = jax.random.normal(own, (len(labels), *self.settings.image_shape))
        x = jnp.asarray(noise) * self.settings.sigma_data
        times = np.linspace(self.settings.max_time, 0, num_steps + 1, dtype="float32")
        for t, s in itertools.pairwise(times):
            x = self.jump(self.state[0], x, t, s, labels, guidance)
        return np.asarray(x)

    def weights(self):
        """Trained weights and their averages, by the path in the Keras backbone."""
        trained, averages, *_ = jax.device_get(self.state)
        return trained | {f"average/{name}": v for name, v in averages.items()}
