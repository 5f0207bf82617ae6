"""PyTorch's side of scripts/bench-against-peers: the same network, the same work, on the whole batch at once.

Prints one JSON line: seconds of every repetition after one that warms up. SiT in plain PyTorch (scripts/parity/sit.py) with
scaled_dot_product_attention; random weights everywhere. AM iteration: rollout, lean adjoint by autograd with the base velocity
kept for the loss, loss on n steps in one batch, AdamW.
"""
import argparse, copy, json, pathlib, resource, sys, time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "parity"))
import torch
from torch import nn
from torch.nn import functional as F
import sit

p = argparse.ArgumentParser()
p.add_argument("work", choices=["am", "forward", "sample", "vjp", "train-step"])
p.add_argument("--model", choices=["mnist", "S/2"], default="mnist")
p.add_argument("--batch", type=int, default=32)
p.add_argument("--steps", type=int, default=20)
p.add_argument("--loss-steps", type=int, default=10)
p.add_argument("--policy", choices=["full", "lora"], default="full")
p.add_argument("--precision", choices=["fp32", "autocast"], default="fp32")
p.add_argument("--compile", nargs="?", const="default", default="", choices=["default", "reduce-overhead"], help="torch.compile in this mode")
p.add_argument("--device", default="cpu")
p.add_argument("--threads", type=int, default=torch.get_num_threads())
p.add_argument("--repeats", type=int, default=3)
a = p.parse_args()
torch.set_num_threads(a.threads)
torch.manual_seed(0)
there = {"device": a.device}
on_gpu = torch.device(a.device).type == "cuda"


def attend(self, x):
    n, tokens, width = x.shape
    q, k, v = self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
    return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, width))


sit.Attention.forward = attend
shapes = {"mnist": dict(input_size=28, patch_size=4, in_channels=1, hidden_size=96, depth=6, num_heads=3, num_classes=10, learn_sigma=False),
          "S/2": dict(input_size=32, patch_size=2, in_channels=4, hidden_size=384, depth=12, num_heads=6, num_classes=1000, learn_sigma=True)}
shape = shapes[a.model]
model = sit.redraw(sit.SiT(**shape), 1, 0.03).to(a.device)
model.pos_embed.requires_grad_(False)
image = (shape["in_channels"], shape["input_size"], shape["input_size"])


class LoRA(nn.Module):
    on = True

    def __init__(self, base, rank=16):
        super().__init__()
        self.base, self.down, self.up = base, nn.Parameter(torch.randn(rank, base.in_features, **there) / base.in_features**0.5), nn.Parameter(torch.zeros(base.out_features, rank, **there))

    def forward(self, x):
        y = self.base(x)
        return y + F.linear(F.linear(x, self.down), self.up) if LoRA.on else y


base = model
if a.work == "am" and a.policy == "lora":
    model.requires_grad_(False)
    for block in model.blocks:
        block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2 = (LoRA(layer) for layer in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2))
elif a.work == "am":
    base = copy.deepcopy(model).requires_grad_(False)
elif a.work != "train-step":
    model.requires_grad_(False)
run = {id(net): torch.compile(net, mode=a.compile) if a.compile else net for net in (model, base)}


def velocity(net, x, t, y, adapted=True):
    LoRA.on = adapted
    with torch.autocast(torch.device(a.device).type, torch.bfloat16, enabled=a.precision == "autocast"):
        v = run[id(net)](x, t, y).float()
    return v.clone() if a.compile == "reduce-overhead" else v  # the next call writes over its buffers


trained = [w for w in model.parameters() if w.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True) if trained else None
average = [w.detach().clone() for w in trained]
x, cotangent, t, y = torch.randn(a.batch, *image, **there), torch.randn(a.batch, *image, **there), torch.rand(a.batch, **there), torch.arange(a.batch, **there) % shape["num_classes"]


def forward():
    with torch.no_grad():
        velocity(model, x, t, y)


def sample():
    state = torch.randn(a.batch, *image, **there)
    with torch.no_grad():
        for k in range(a.steps):
            state = state + velocity(model, state, torch.full((a.batch,), k / a.steps, **there), y) / a.steps


def vjp():
    point = x.detach().requires_grad_(True)
    torch.autograd.grad(velocity(model, point, t, y), point, cotangent)


def train_step():
    s = t.view(-1, 1, 1, 1)
    loss = (velocity(model, s * x + (1 - s) * cotangent, t, y) - (x - cotangent)).square().mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    torch._foreach_lerp_(average, [w.detach() for w in trained], 1e-4)


def am():
    h, null = 1 / a.steps, torch.full((a.batch,), shape["num_classes"], **there)
    state, states = torch.randn(a.batch, *image, **there), []
    time_of = lambda k: torch.full((a.batch,), k * h, **there)
    scale = lambda k: (h * 2 * (1 - k * h) / (k * h + h)) ** 0.5  # deviation of a memoryless step
    with torch.no_grad():
        for k in range(a.steps):
            states.append(state)
            v = velocity(model, state, time_of(k), null)
            state = state + h * (2 * v - state / (k * h + h)) + scale(k) * torch.randn_like(state)
    chosen = sorted({1 + round(i * (a.steps - 2) / max(a.loss_steps - 1, 1)) for i in range(a.loss_steps)})
    adjoint, kept = 0.2 * (state - 0.5), {}
    for k in range(a.steps - 1, 0, -1):
        point = states[k].requires_grad_(True)
        v = velocity(base, point, time_of(k), null, adapted=False)
        if k in chosen:
            kept[k] = (v.detach(), adjoint)
        adjoint = (1 - h / (k * h + h)) * adjoint + 2 * h * torch.autograd.grad(v, point, adjoint)[0]
    points, times, labels = torch.cat([states[k].detach() for k in chosen]), torch.cat([time_of(k) for k in chosen]), null.repeat(len(chosen))
    target_v, target_a = torch.cat([kept[k][0] for k in chosen]), torch.cat([kept[k][1] for k in chosen])
    s = torch.tensor([scale(k) for k in chosen], **there).repeat_interleave(a.batch).view(-1, 1, 1, 1)
    loss = ((2 * h * (velocity(model, points, times, labels) - target_v)) / s + s * target_a).square().flatten(1).sum(1).mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


work = {"forward": forward, "sample": sample, "vjp": vjp, "train-step": train_step, "am": am}[a.work]
seconds, cpu_seconds = [], []
for repeat in range(a.repeats + 1):
    begin, cpu_begin = time.perf_counter(), time.process_time()
    work()
    if on_gpu:
        torch.cuda.synchronize()
    if repeat:
        seconds.append(time.perf_counter() - begin)
        cpu_seconds.append(time.process_time() - cpu_begin)
print(json.dumps({"seconds_min": min(seconds), "seconds_median": sorted(seconds)[len(seconds) // 2], "cpu_seconds_min": min(cpu_seconds),
                  "peak_memory_mb": (torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) / 1e6}))
