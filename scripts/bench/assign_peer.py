"""The one-by-one inversion of Orthogonal-Constrained-One-Step-Alignment in plain PyTorch: z = eps Q^T, Q = expm(raw - raw^T), made twice a
step (noise, orthogonality term), Adam on raw, one target at a time, the smallest loss kept. Prints one JSON object.

usage: assign_peer.py GENERATOR MNIST_FOLDER [--targets 16] [--steps 200]
GENERATOR: a conditional MNIST GAN as tiltflow writes it, or an MLP generator as a PyTorch state dict (0.weight, 2.weight, ...).
"""
import argparse, gzip, json, pathlib, struct, time, torch
F = torch.nn.functional
p = argparse.ArgumentParser()
p.add_argument("generator")
p.add_argument("data")
p.add_argument("--targets", type=int, default=16)
p.add_argument("--steps", type=int, default=200)
o = p.parse_args()
torch.set_num_threads(1)
torch.manual_seed(0)


def read_safetensors(path):
    raw = pathlib.Path(path).read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    types = {"F32": torch.float32, "I64": torch.int64}
    return {name: torch.frombuffer(bytearray(raw[8 + size + t["data_offsets"][0]:8 + size + t["data_offsets"][1]]), dtype=types[t["dtype"]]).reshape(t["shape"])
            for name, t in json.loads(raw[8:8 + size]).items() if name != "__metadata__"}


w = read_safetensors(o.generator) if o.generator.endswith(".safetensors") else torch.load(o.generator, map_location="cpu", weights_only=True)
gan = "net.0.weight" in w
d = w["fc.0.weight"].shape[1] - w["label_emb.weight"].shape[1] if gan else w["0.weight"].shape[1]
norm = lambda name, x: F.batch_norm(x, w[name + ".running_mean"], w[name + ".running_var"], w[name + ".weight"], w[name + ".bias"])


def generate(z, y):
    if not gan:
        for i in (0, 2, 4):
            z = F.linear(z, w[f"{i}.weight"], w[f"{i}.bias"])
            z = torch.tanh(z) if i == 4 else F.relu(z)
        return z.view(-1, 1, 28, 28)
    h = F.linear(torch.cat([z, w["label_emb.weight"][y]], 1), w["fc.0.weight"], w["fc.0.bias"])
    h = F.leaky_relu(norm("fc.1", h), 0.2).view(len(z), -1, 7, 7)
    for i in (0, 3):
        h = F.leaky_relu(norm(f"net.{i + 1}", F.conv_transpose2d(h, w[f"net.{i}.weight"], w[f"net.{i}.bias"], 2, 1)), 0.2)
    return torch.tanh(F.conv2d(h, w["net.6.weight"], w["net.6.bias"], padding=1))


read = lambda name, skip: torch.frombuffer(bytearray(gzip.open(pathlib.Path(o.data) / name).read()[skip:]), dtype=torch.uint8)
images = read("train-images-idx3-ubyte.gz", 16).view(-1, 1, 1, 28, 28)[:o.targets].float() / 127.5 - 1
labels = read("train-labels-idx1-ubyte.gz", 8)[:o.targets].long()
eye, losses, begin = torch.eye(d), [], time.time()
for x, y in zip(images, labels):
    eps, raw, best = torch.randn(1, d), (1e-4 * torch.randn(d, d)).requires_grad_(), float("inf")
    adam = torch.optim.Adam([raw], lr=5e-2)
    for _ in range(o.steps):
        z = eps @ torch.matrix_exp(raw - raw.T).T
        made = generate(z, y.view(1))
        q = torch.matrix_exp(raw - raw.T)
        loss = (made - x).square().mean() + 1e-3 * ((z.square().mean() - 1) ** 2 + z.mean() ** 2) + 0 * (q.T @ q - eye).square().sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
        if loss.item() < best:
            best = loss.item()
    losses.append(best)
losses = torch.tensor(losses)
print(json.dumps({"targets": o.targets, "targets_per_second": o.targets / (time.time() - begin), "loss": losses.mean().item(), "loss_se": (losses.std() / o.targets ** 0.5).item()}))
