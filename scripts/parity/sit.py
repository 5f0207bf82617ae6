"""SiT (Ma et al. 2024) in plain PyTorch, with the parameter names of the official release: what tiltflow is compared with.

Written from the published architecture: DiT blocks with adaLN-zero, sinusoidal positions, a class table whose last row
stands for "no class". `forward(x, t, y)` gives the velocity; with learn_sigma the second half of the channels is dropped.
"""
import math

import torch
from torch import nn
from torch.nn import functional as F


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) / math.sqrt(width // self.heads)).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(n, tokens, width))


class Mlp(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def modulate(x, shift, scale):
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class Block(nn.Module):
    def __init__(self, width, heads, ratio):
        super().__init__()
        self.attn, self.mlp = Attention(width, heads), Mlp(width, int(width * ratio))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.width = width

    def forward(self, x, c):
        a_shift, a_scale, a_gate, m_shift, m_scale, m_gate = self.adaLN_modulation(c).chunk(6, 1)
        norm = lambda h: F.layer_norm(h, (self.width,), eps=1e-6)
        x = x + a_gate.unsqueeze(1) * self.attn(modulate(norm(x), a_shift, a_scale))
        return x + m_gate.unsqueeze(1) * self.mlp(modulate(norm(x), m_shift, m_scale))


class FinalLayer(nn.Module):
    def __init__(self, width, patch, channels):
        super().__init__()
        self.linear = nn.Linear(width, patch * patch * channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.width = width

    def forward(self, x, c):
        shift, scale = self.adaLN_modulation(c).chunk(2, 1)
        return self.linear(modulate(F.layer_norm(x, (self.width,), eps=1e-6), shift, scale))


class PatchEmbed(nn.Module):
    def __init__(self, channels, width, patch):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, patch)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


class TimestepEmbedder(nn.Module):
    def __init__(self, width, features=256):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))
        self.half = features // 2

    def forward(self, t):
        frequencies = torch.exp(-math.log(10000) * torch.arange(self.half, dtype=torch.float32, device=t.device) / self.half).to(t.dtype)
        angles = t[:, None] * frequencies[None]
        return self.mlp(torch.cat([angles.cos(), angles.sin()], 1))


class LabelEmbedder(nn.Module):
    def __init__(self, classes, width):
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)

    def forward(self, y):
        return self.embedding_table(y)


def positions(side, width):
    def one(coordinate):
        omega = 1.0 / 10000 ** (torch.arange(width // 4, dtype=torch.float64) / (width / 4))
        angle = coordinate.reshape(-1).double()[:, None] * omega[None]
        return torch.cat([angle.sin(), angle.cos()], 1)

    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.cat([one(column), one(row)], 1).float().unsqueeze(0)


class SiT(nn.Module):
    def __init__(self, input_size=32, patch_size=2, in_channels=4, hidden_size=1152, depth=28, num_heads=16, mlp_ratio=4.0, num_classes=1000, learn_sigma=True):
        super().__init__()
        self.in_channels, self.patch, self.side, self.learn_sigma = in_channels, patch_size, input_size // patch_size, learn_sigma
        self.out_channels = in_channels * (2 if learn_sigma else 1)
        self.x_embedder = PatchEmbed(in_channels, hidden_size, patch_size)
        self.t_embedder, self.y_embedder = TimestepEmbedder(hidden_size), LabelEmbedder(num_classes, hidden_size)
        self.pos_embed = nn.Parameter(positions(self.side, hidden_size), requires_grad=False)
        self.blocks = nn.ModuleList(Block(hidden_size, num_heads, mlp_ratio) for _ in range(depth))
        self.final_layer = FinalLayer(hidden_size, patch_size, self.out_channels)

    def forward(self, x, t, y):
        h = self.x_embedder(x) + self.pos_embed
        c = self.t_embedder(t) + self.y_embedder(y)
        for block in self.blocks:
            h = block(h, c)
        h = self.final_layer(h, c)
        p, s = self.patch, self.side
        h = h.reshape(-1, s, s, p, p, self.out_channels).permute(0, 5, 1, 3, 2, 4).reshape(-1, self.out_channels, s * p, s * p)
        return h[:, : self.in_channels] if self.learn_sigma else h


def redraw(model, seed, deviation=0.05):
    """Random weights everywhere: the official initialisation starts with zero outputs, which compare equal whatever is wrong."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "pos_embed":
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * deviation)
    return model
