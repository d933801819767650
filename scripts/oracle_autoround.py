#!/usr/bin/env python3
"""Replays the first steps of AutoRound in PyTorch, whose gradients are its own.

    cmake --build build/release --target test_autoround
    NIBBLE_ORACLE=/tmp/replay.json build/release/tests/test_autoround
    scripts/oracle_autoround.py /tmp/replay.json

Needs torch; not part of the tests. The block is written here once more, from the papers: RMSNorm,
RoPE, grouped heads, SwiGLU; fake quantization with straight-through rounding (arXiv:2309.05516).

Fails where one of these does not hold; nibble computes in binary32, this in binary64.

  gradients  Of half the square of the block's outputs, each of the seven matrices: to 1e-5 of its
             largest. An element is a sum over 144 tokens: 144 * 2^-24 = 8.6e-6.
  losses     After each step, as shares of the first: to 1e-5, the same sums. The steps follow the
             signs of the gradients, so that a wrong one shows in the next loss.
  values     Stored at the best step: all but one in a thousand the same to 1e-6 of the largest. A
             gradient next to 0 may take either sign, and a weight next to a boundary either code.
"""
import json
import sys

import torch

torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)


class Block:
    def __init__(self, given):
        for key, value in given.items():
            setattr(self, key, value)
        self.norm = torch.tensor(self.norm)
        d_q, d_k = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        shapes = [(d_q, self.d_model), (d_k, self.d_model), (d_k, self.d_model), (self.d_model, d_q),
                  (self.d_ff, self.d_model), (self.d_ff, self.d_model), (self.d_model, self.d_ff)]
        self.weights = [torch.tensor(w).reshape(s) for w, s in zip(self.weights, shapes)]
        self.x = torch.tensor(self.x).reshape(self.n_seq, self.len, self.d_model)
        self.y = torch.tensor(self.y).reshape(self.n_seq, self.len, self.d_model)

    def rmsnorm(self, x):
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.eps) * self.norm

    def rope(self, x):
        half = self.head_dim // 2
        theta = self.theta ** (-torch.arange(half) / half)
        angle = torch.arange(self.len)[:, None] * theta[None, :]
        cos, sin = torch.cos(angle)[None, :, None, :], torch.sin(angle)[None, :, None, :]
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def forward(self, weights):
        q_w, k_w, v_w, o_w, gate_w, up_w, down_w = weights
        group = self.n_heads // self.n_kv_heads
        h = self.rmsnorm(self.x)

        def heads(w, n):
            return (h @ w.T).reshape(self.n_seq, self.len, n, self.head_dim)

        q = self.rope(heads(q_w, self.n_heads))
        k = self.rope(heads(k_w, self.n_kv_heads)).repeat_interleave(group, 2)
        v = heads(v_w, self.n_kv_heads).repeat_interleave(group, 2)
        scores = torch.einsum("sihd,sjhd->shij", q, k) / self.head_dim ** 0.5
        hidden = torch.triu(torch.ones(self.len, self.len, dtype=torch.bool), 1)
        p = torch.softmax(scores.masked_fill(hidden, float("-inf")), -1)
        att = torch.einsum("shij,sjhd->sihd", p, v).reshape(self.n_seq, self.len, -1)
        x1 = self.x + att @ o_w.T
        h = self.rmsnorm(x1)
        return x1 + (torch.nn.functional.silu(h @ gate_w.T) * (h @ up_w.T)) @ down_w.T


def through(x, rounded):
    """rounded, with the gradient of x."""
    return x + (rounded - x).detach()


class Rounding:
    """int3, one scale a group, stored as BF16."""

    def __init__(self, w, scales, group):
        self.w, self.group = w.reshape(-1, group), group
        self.scale = torch.tensor(scales)[:, None]
        self.shape = w.shape
        self.v = torch.zeros_like(self.w, requires_grad=True)
        self.factor = torch.ones_like(self.scale, requires_grad=True)

    def value(self):
        scale = self.scale * self.factor
        stored = scale.detach().to(torch.float32).to(torch.bfloat16).to(torch.float64)
        scale = through(scale, stored)
        u = self.w / scale
        # halves go down: the grid's rule for ties
        q = through(u + self.v, torch.ceil((u + self.v).detach() - 0.5))
        return (scale * torch.clamp(q, -4, 3)).reshape(self.shape)

    def step(self, rate):
        with torch.no_grad():
            self.v -= rate * torch.sign(self.v.grad)
            self.v.clamp_(-0.5, 0.5)
            self.factor -= rate * (4 / 8) ** 2 * torch.sign(self.factor.grad)
            self.factor.clamp_(0.5, 1.2)
        self.v.grad = self.factor.grad = None


def check(what, worst, bound):
    print(f"{what}: {worst:.2e}, bound {bound:.0e}")
    if not worst <= bound:
        sys.exit(f"{what} differ")


def main():
    given = json.load(open(sys.argv[1]))
    block = Block(given["in"])

    weights = [w.clone().requires_grad_() for w in block.weights]
    (block.forward(weights) ** 2).sum().div(2).backward()
    worst = 0
    for w, grad in zip(weights, given["grads"]):
        got = torch.tensor(grad).reshape(w.shape)
        worst = max(worst, float((got - w.grad).abs().max() / w.grad.abs().max()))
    # binary32 sums of n_seq * len terms
    check("gradients, of the largest", worst, 1e-5)

    rounding = [Rounding(w, s, block.group) for w, s in zip(block.weights, given["scales"])]
    worst, first, best = 0, None, None
    for step in range(given["iters"] + 1):
        values = [r.value() for r in rounding]
        loss = ((block.forward(values) - block.y) ** 2).sum()
        first = float(loss.detach()) if first is None else first
        if step == given["best_step"]:
            best = [v.detach() for v in values]
        worst = max(worst, abs(float(loss.detach()) / first - given["share"][step]))
        loss.backward()
        for r in rounding:
            r.step(given["rate"] * (1 - step / given["iters"]))
    # A gradient next to 0 may have either sign, and a weight next to a boundary either code: a few
    # steps later the losses part. Before, they agree to the rounding of binary32.
    check("losses, as shares of the first", worst, 1e-5)
    same = total = 0
    for mine, theirs in zip(best, given["values"]):
        theirs = torch.tensor(theirs).reshape(mine.shape)
        same += int(((mine - theirs).abs() <= 1e-6 * mine.abs().max()).sum())
        total += mine.numel()
    check("values that differ, of all", 1 - same / total, 1e-3)


main()
