"""Self-modifying Titans as a loop over tokens, written from Eq. 83-93 of "Nested Learning": the oracle of our module.

One matrix (or pair of matrices) for each memory, gradients of the inner loss by autograd, no chunk-parallel form,
nothing shared with the module but its parameters. Shapes: B batch, T tokens, H heads, K head width.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Memory = dict[str, Tensor]  # part -> (B, H, rows, columns)


def apply(memory: Memory, x: Tensor) -> Tensor:
    """M(x): x (B, H, K) -> (B, H, rows)."""
    if "weight" in memory:
        return torch.einsum("bhrk,bhk->bhr", memory["weight"], x)
    inside = F.gelu(torch.einsum("bhek,bhk->bhe", memory["up"], x))
    return x + torch.einsum("bhke,bhe->bhk", memory["down"], inside)


def loss(objective: str, out: Tensor, target: Tensor) -> Tensor:
    if objective == "dot":
        return -(out * target).sum()
    squared = (out - target).square().sum()
    return squared if objective == "l2_doubled" else squared / 2


def gradient(memory: Memory, objective: str, k: Tensor, target: Tensor) -> Memory:
    """Of the inner loss at `memory`, the target held constant; differentiable again."""
    alias = {part: w.clone() for part, w in memory.items()}
    inner = loss(objective, apply(alias, k), target)
    return dict(zip(alias, torch.autograd.grad(inner, list(alias.values()), create_graph=True)))


def keys(memory: Memory, k: Tensor) -> Memory:
    """The input of every linear layer."""
    if "weight" in memory:
        return {"weight": k}
    return {"up": k, "down": F.gelu(torch.einsum("bhek,bhk->bhe", memory["up"], k))}


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def gated(z: Tensor, kind: str) -> Tensor:
    s = 1 / (1 + torch.exp(-z))
    return s if kind == "sigmoid" else torch.clamp(1.2 * s - 0.1, 0, 1)


def token_loop(
    module, x: Tensor, detach_writes: bool = False, watch: Callable | None = None, **c
) -> tuple[Tensor, dict]:
    """x (B, T, D) -> y (B, T, D) and the memories after T tokens. `c` is what the module was built with, complete."""
    B, T, D = x.shape
    H, K = c["heads"], D // c["heads"]
    adaptive, C = c["adaptive"], {"main": c["chunk"]}
    start = {n: {p: w.expand(B, *w.shape) for p, w in one.items()} for n, one in module.memories.initial.items()}
    live = dict(start)
    anchor, momentum = dict(live), {n: {p: torch.zeros_like(w) for p, w in m.items()} for n, m in live.items()}

    def heads(name: str, z: Tensor) -> Tensor:
        weight = module.input.weight if name == "input" else module.static[name].weight
        return (z @ weight.T).reshape(B, H, -1)

    def make(name: str, t: int) -> Tensor:
        if name not in adaptive:
            return heads(name, x[:, t])
        return apply(anchor[name], unit(heads("input", x[:, t])))

    def scalar(name: str, t: int) -> Tensor:
        z = make(name, t)
        if name in adaptive:
            if c["memory"] == "mlp":
                row = [n for n in ("eta", "alpha") if n in adaptive].index(name)
                z = torch.einsum("bhk,hk->bh", z, module.memories.readout[:, row]).unsqueeze(-1)
            z = z * K**0.5
        return gated(z[..., 0] + getattr(module, f"{name}_bias"), c["gates"])  # (B, H)

    ys = []
    for t in range(T):
        for name in live:
            if t % C.get(name, c["projection_chunk"]) == 0:
                anchor[name] = live[name]
        q, k, v = (unit(make(n, t)) for n in ("q", "k", "v"))
        alpha = scalar("alpha", t) if c["alpha"] == "gate" else x.new_ones(B, H)
        eta = module.eta_max * alpha * scalar("eta", t)
        ys.append(apply((anchor if c["read"] == "anchor" else live)["main"], q))
        beta = None if not c["momentum"] else torch.sigmoid(x[:, t] @ module.beta.weight.T + module.beta.bias)
        after = {}
        for name, memory in live.items():
            grads = gradient(anchor[name], c["objective"], k, apply(anchor[name], v))
            after[name] = {}
            for part, w in memory.items():
                key = keys(anchor[name], k)[part]
                step = eta / torch.clamp((key * key).sum(-1), min=1) if part == "down" else eta
                step, keep = step[..., None, None], alpha[..., None, None]
                erase = 0.0 if c["rule"] == "gd" or (part == "down" and c["erase"] == "input") else 1.0
                write = -step * erase * torch.einsum("bhrk,bhk,bhl->bhrl", w, key, key)
                if beta is None:
                    write = write - step * grads[part]
                else:
                    kept = beta[..., None, None] * momentum[name][part] - step * grads[part]
                    momentum[name][part] = kept
                    write = write + kept
                write = write.detach() if detach_writes else write
                back = (1 - keep) * start[name][part] if c["retain"] == "initial" else 0.0
                after[name][part] = keep * w + back + write
        live = after
        if watch is not None:
            watch(t, live)
    y = torch.stack(ys, 1)  # (B, T, H, K)
    y = y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return y.reshape(B, T, D) @ module.output.weight.T, live
