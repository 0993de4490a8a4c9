"""IMM in plain PyTorch: eager, or with its loss through `torch.compile`."""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import nn

from hand_written.settings import BETA_1, BETA_2, EPSILON


class TimeEmbedding(nn.Module):
    """Sines and cosines of times through a perceptron."""

    def __init__(self, size, frequencies):
        super().__init__()
        self.hidden_dense = nn.Linear(2 * len(frequencies), size)
        self.output_dense = nn.Linear(size, size)
        self.register_buffer("frequencies", torch.from_numpy(frequencies))

    def forward(self, times):
        angles = times[:, None] * self.frequencies
        features = torch.cat([angles.cos(), angles.sin()], -1)
        return self.output_dense(F.silu(self.hidden_dense(features)))


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, size, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(size, 3 * size)
        self.projection = nn.Linear(size, size)

    def forward(self, h):
        batch, tokens, size = h.shape
        qkv = self.qkv(h).view(batch, tokens, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v)
        return self.projection(attended.transpose(1, 2).reshape(batch, tokens, size))


class Block(nn.Module):
    """Transformer block with adaLN-Zero."""

    def __init__(self, size, num_heads):
        super().__init__()
        self.modulation = nn.Linear(size, 6 * size)
        self.attention = Attention(size, num_heads)
        self.mlp_hidden = nn.Linear(size, 4 * size)
        self.mlp_output = nn.Linear(4 * size, size)

    def forward(self, h, c):
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(c).chunk(
            6, -1
        )
        normed = F.layer_norm(h, h.shape[-1:], eps=1e-6)
        h = h + gate_1 * self.attention(normed * (1 + scale_1) + shift_1)
        normed = F.layer_norm(h, h.shape[-1:], eps=1e-6)
        hidden = self.mlp_hidden(normed * (1 + scale_2) + shift_2)
        return h + gate_2 * self.mlp_output(F.gelu(hidden, approximate="tanh"))


class FinalLayer(nn.Module):
    """From tokens to patches."""

    def __init__(self, size, outputs):
        super().__init__()
        self.modulation = nn.Linear(size, 2 * size)
        self.projection = nn.Linear(size, outputs)

    def forward(self, h, c):
        shift, scale = self.modulation(c).chunk(2, -1)
        normed = F.layer_norm(h, h.shape[-1:], eps=1e-6)
        return self.projection(normed * (1 + scale) + shift)


class Projection(nn.Module):
    """From patches to tokens."""

    def __init__(self, inputs, size):
        super().__init__()
        self.projection = nn.Linear(inputs, size)

    def forward(self, x):
        return self.projection(x)


class DiT(nn.Module):
    """The network G; takes its weights from a dictionary by Keras's paths."""

    def __init__(self, settings, weights):
        super().__init__()
        self.settings = s = settings
        pixels = s.patch_size**2 * s.image_shape[-1]
        self.patch_embedding = Projection(pixels, s.hidden_size)
        for name in ("t_embedding", "s_embedding"):
            frequencies = weights[f"{name}/frequencies"]
            setattr(self, name, TimeEmbedding(s.hidden_size, frequencies))
        self.label_embedding = nn.Embedding(s.num_classes + 1, s.hidden_size)
        self.blocks = nn.ModuleList(
            Block(s.hidden_size, s.num_heads) for _ in range(s.depth)
        )
        self.final_layer = FinalLayer(s.hidden_size, pixels)
        table = torch.from_numpy(weights["position_embedding/table"])
        self.register_buffer("table", table)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                value = torch.from_numpy(weights[keras_path(name)])
                parameter.copy_(
                    value.T
                    if name.endswith("weight") and "label" not in name
                    else value
                )

    def forward(self, x, c_t, c_s, labels):
        s = self.settings
        rows, columns = s.grid
        p, channels = s.patch_size, s.image_shape[-1]
        c = self.t_embedding(c_t) + self.s_embedding(c_s) + self.label_embedding(labels)
        c = F.silu(c)[:, None]
        patches = x.view(-1, rows, p, columns, p, channels).transpose(2, 3)
        h = self.patch_embedding(patches.reshape(len(x), rows * columns, -1))
        h = h + self.table
        for block in self.blocks:
            h = block(h, c)
        patches = self.final_layer(h, c).view(-1, rows, columns, p, p, channels)
        return patches.transpose(2, 3).reshape(x.shape).float()


def keras_path(name):
    """Path in the Keras backbone of a parameter of this one."""
    name = name.replace("blocks.", "block_").replace(".", "/")
    if name == "label_embedding/weight":
        return "label_embedding/embeddings"
    return name.replace("weight", "kernel")


class Loop:
    """One model in training: `step(x, labels)` on tensors, or `update(particles)`."""

    def __init__(self, settings, weights, compiled=False, device="cpu"):
        self.settings = settings
        self.device = device
        self.network = DiT(settings, weights).to(device)
        self.parameters = list(self.network.parameters())
        self.averages = [p.detach().clone() for p in self.parameters]
        self.optimizer = torch.optim.Adam(
            self.parameters,
            settings.learning_rate,
            betas=(BETA_1, BETA_2),
            eps=EPSILON,
            fused=True,
        )
        self.count = 0
        self.loss = torch.compile(self.imm_loss) if compiled else self.imm_loss
        self.jump = torch.compile(self.flow_map) if compiled else self.flow_map

    def flow_map(self, x, t, s, labels, guidance=None):
        """x - (t - s) sigma_d G(x / norm, ...): Euler-FM."""
        sigma_d, scale = self.settings.sigma_data, self.settings.time_scale
        norm = ((1 - t) ** 2 + t**2).sqrt() * sigma_d
        inputs = [x / norm.view(-1, 1, 1, 1), scale * t, scale * s, labels]
        if guidance is not None:
            null = torch.full_like(labels, self.settings.num_classes)
            pairs = zip(inputs, [*inputs[:3], null], strict=True)
            inputs = [torch.cat(pair) for pair in pairs]
        with torch.autocast(self.device, torch.bfloat16, enabled=self.settings.half):
            g = self.network(*inputs)
        if guidance is not None:
            g, unguided = g.chunk(2)
            g = guidance * g + (1 - guidance) * unguided
        return x - ((t - s) * sigma_d).view(-1, 1, 1, 1) * g

    def imm_loss(self, x_t, x_r, s, r, t, labels):
        o = self.settings
        with torch.no_grad():
            target = self.flow_map(x_r, r, s, labels)
        y = self.flow_map(x_t, t, s, labels)
        y = y.view(-1, o.group_size, o.dimension)
        target = target.view(-1, o.group_size, o.dimension)
        s, t = s[:: o.group_size], t[:: o.group_size]
        scale = 1 / ((t - s) * o.sigma_data).clamp_min(1e-6)

        def k(a, b):
            squares = (a[:, :, None] - b[:, None]).square().sum(-1)
            distance = squares.clamp_min(1e-16).sqrt()
            return torch.expm1(-scale[:, None, None] * distance / o.dimension)

        mmd = (k(y, y) + k(target, target) - 2 * k(y, target)).mean((1, 2))
        weight = t * (1 - t) ** (o.a - 1)
        weight = weight / (t**2 + math.exp(-o.b) * (1 - t) ** 2)
        weight = weight / (t**2 + (1 - t) ** 2)
        return (weight * mmd).mean()

    @torch.no_grad()
    def draw(self, x, labels):
        o, batch = self.settings, len(x)
        groups = batch // o.group_size
        t = o.max_time * torch.rand(groups, device=x.device)
        s = t * torch.rand(groups, device=x.device)
        eta = t / (1 - t)
        earlier = (eta - o.eta_decrement).clamp_min(0)
        r = torch.minimum(earlier / (1 + earlier), t - o.min_gap)
        r = torch.maximum(torch.minimum(r, t * (1 - 2**-23)), s)
        s, r, t = (v.repeat_interleave(o.group_size) for v in (s, r, t))
        noise = o.sigma_data * torch.randn_like(x)
        x_t, x_r = (
            (1 - v).view(-1, 1, 1, 1) * x + v.view(-1, 1, 1, 1) * noise for v in (t, r)
        )
        dropped = torch.rand(batch, device=x.device) < o.label_dropout
        return x_t, x_r, s, r, t, labels.masked_fill(dropped, o.num_classes)

    def update(self, particles):
        """One optimizer step; returns the loss."""
        loss = self.loss(*particles)
        self.optimizer.zero_grad()
        loss.backward()
        self.count += 1
        # Keras adds epsilon before the second moment is corrected, PyTorch after.
        corrected = EPSILON / math.sqrt(1 - BETA_2**self.count)
        self.optimizer.param_groups[0]["eps"] = corrected
        self.optimizer.step()
        with torch.no_grad():
            rate = 1 - self.settings.ema_momentum if self.count > 1 else 1.0
            torch._foreach_lerp_(self.averages, self.parameters, rate)
        return loss.detach()

    def tensors(self, *arrays):
        """NumPy arrays on the device."""
        return [torch.from_numpy(a).to(self.device) for a in arrays]

    def epoch(self, batches):
        """Trains on (images, labels) batches of NumPy; returns the mean loss."""
        total = torch.zeros((), device=self.device)
        for x, labels in batches:
            x, labels = self.tensors(x, labels)
            total += self.update(self.draw(x, labels))
        return float(total) / len(batches)

    def losses(self, particles, steps):
        """Losses of repeated steps on particles given as NumPy arrays."""
        particles = self.tensors(*particles)
        return [float(self.update(particles)) for _ in range(steps)]

    @torch.no_grad()
    def sample(self, labels, num_steps, guidance=None, noise=None):
        """Pushforward sampling on a uniform grid; returns a NumPy array."""
        labels = torch.as_tensor(labels, device=self.device)
        if noise is None:
            shape = (len(labels), *self.settings.image_shape)
            x = torch.randn(shape, device=self.device)
        else:
            x = torch.as_tensor(noise, device=self.device)
        x = x * self.settings.sigma_data
        times = torch.linspace(
            self.settings.max_time, 0, num_steps + 1, device=self.device
        )
        for t, s in itertools.pairwise(times):
            t, s = t.expand(len(x)), s.expand(len(x))
            x = self.jump(x, t, s, labels, guidance)
        return x.cpu().numpy()

    def weights(self):
        """Trained weights and their averages, by the path in the Keras backbone."""
        names = [name for name, _ in self.network.named_parameters()]
        return {
            prefix + keras_path(name): as_in_keras(name, value)
            for prefix, values in (("", self.parameters), ("average/", self.averages))
            for name, value in zip(names, values, strict=True)
        }


def as_in_keras(name, value):
    """A parameter as the Keras backbone has it, as a NumPy array."""
    transposed = name.endswith("weight") and "label" not in name
    return (value.T if transposed else value).detach().cpu().numpy()
