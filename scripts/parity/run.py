#!/usr/bin/env python3
"""tiltflow against PyTorch, live: files written by each side are read by the other, outputs, gradients, LoRA and sampler
states are compared. Prints a table; exit code 1 when a tolerance is exceeded.

usage: scripts/parity/run.py [--tiltflow build/release/tiltflow] [--size tiny|small]   (see `make parity`)
"""
import argparse, json, pathlib, subprocess, sys, tempfile

import torch
from safetensors.torch import load_file, save_file

from sit import SiT, redraw

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--tiltflow", default="build/release/tiltflow")
parser.add_argument("--size", choices=["tiny", "small"], default="tiny")
options = parser.parse_args()
program = pathlib.Path(options.tiltflow).resolve()
sizes = {"tiny": dict(input_size=8, patch_size=2, in_channels=4, hidden_size=48, depth=3, num_heads=4, num_classes=7, learn_sigma=True),
         "small": dict(input_size=16, patch_size=2, in_channels=4, hidden_size=384, depth=12, num_heads=6, num_classes=1000, learn_sigma=True)}
shape = sizes[options.size]
rows = []


def tiltflow(*arguments):
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode not in (0, 1):
        sys.exit(f"tiltflow {' '.join(map(str, arguments))}\n{done.stderr}")
    return done


def compare(what, found, expected, tolerance):
    error = ((found.double() - expected.double()).abs().max() / expected.double().abs().max()).item()
    rows.append((what, error, tolerance))


torch.manual_seed(0)
with tempfile.TemporaryDirectory() as folder:
    at = pathlib.Path(folder)
    raw, ema = redraw(SiT(**shape), 1), redraw(SiT(**shape), 2).eval()
    heads = f"num_heads={shape['num_heads']}"

    # 1. A trainer's checkpoint, read by tiltflow: outputs and gradients.
    optimizer = torch.optim.AdamW(raw.parameters())
    torch.save({"model": raw.state_dict(), "ema": ema.state_dict(), "opt": optimizer.state_dict(), "args": argparse.Namespace(path_type="Linear", num_classes=shape["num_classes"])}, at / "trainer.pt")
    n = 4
    x = torch.randn(n, shape["in_channels"], shape["input_size"], shape["input_size"], requires_grad=True)
    t, y, cotangent = torch.tensor([0.0, 0.3, 0.8, 1.0]), torch.tensor([0, 3, 5, shape["num_classes"]]), torch.randn(n, shape["in_channels"], shape["input_size"], shape["input_size"])
    out = ema(x, t, y)
    named = dict(ema.named_parameters())
    wanted = ["blocks.0.attn.qkv.weight", "blocks.1.mlp.fc2.bias", "final_layer.linear.weight", "t_embedder.mlp.0.weight", "y_embedder.embedding_table.weight"]
    grads = torch.autograd.grad((out * cotangent).sum(), [x] + [named[name] for name in wanted])
    reference = {"x": x, "t": t, "y": y, "out": out, "cot": cotangent, "vjp_x": grads[0], **{f"pgrad.{name}": g for name, g in zip(wanted, grads[1:])}}
    save_file({k: v.detach().contiguous().clone() for k, v in reference.items()}, at / "reference.safetensors")
    answer = json.loads(tiltflow("parity", "--model", at / "trainer.pt", "--reference", at / "reference.safetensors", "--model-arg", heads, "--json").stdout)
    for row in answer["rows"]:
        rows.append((f"trainer.pt -> tiltflow: {row['tensor']}", row["relative_error"], row["tolerance"]))

    # Guidance as the official script has it: a batch of pairs, the first three channels guided.
    pair = x.detach()[:2].repeat(2, 1, 1, 1)
    kinds = torch.tensor([1, 4, shape["num_classes"], shape["num_classes"]])
    guided = {"cfg.x": pair, "cfg.t": torch.full((4,), 0.4), "cfg.y": kinds}
    with torch.no_grad():
        for scale in (1.5, 4.0):
            answer = ema(pair, guided["cfg.t"], kinds)
            with_label, without = answer[:2, :3], answer[2:, :3]
            mixed = without + scale * (with_label - without)
            guided[f"cfg.out_{scale}"] = torch.cat([mixed.repeat(2, 1, 1, 1), answer[:, 3:]], 1)
    save_file({k: v.contiguous() for k, v in guided.items()}, at / "guided.safetensors")
    answer = json.loads(tiltflow("parity", "--model", at / "trainer.pt", "--reference", at / "guided.safetensors", "--model-arg", heads, "--json").stdout)
    for row in answer["rows"]:
        rows.append((f"trainer.pt -> tiltflow: {row['tensor']}", row["relative_error"], row["tolerance"]))

    # 2. Files written by tiltflow, read by PyTorch with strict keys.
    for name in ("sit.pt", "sit.safetensors", "raw.pt"):
        tiltflow("convert", at / "trainer.pt", at / name, "--weights", "model" if name == "raw.pt" else "ema")
        state = load_file(at / name) if name.endswith("safetensors") else torch.load(at / name, weights_only=True)
        model = SiT(**shape)
        model.load_state_dict(state, strict=True)
        with torch.no_grad():
            compare(f"{name} by tiltflow -> PyTorch, strict: out", model.eval()(x, t, y), (raw if name == "raw.pt" else ema)(x, t, y), 1e-6)

    # 3. Sampling: the same noise through the same solver.
    labels = torch.tensor([1, 2, shape["num_classes"]])
    for method, stages in (("ode-euler", 1), ("ode-heun", 2)):
        tiltflow("sample", "--model", at / "trainer.pt", "--model-arg", heads, "--n", 3, "--labels", ",".join(map(str, labels.tolist())), "--sampler", method, "--steps", 8, "--keep-noise", "--no-png", "--out", at / method)
        drawn = load_file(at / method / "samples.safetensors")
        state, h = drawn["noise"], 1 / 8
        with torch.no_grad():
            for k in range(8):
                time = lambda value: torch.full((3,), value)
                slope = ema(state, time(k * h), labels)
                state = state + h * slope if stages == 1 else state + h / 2 * (slope + ema(state + h * slope, time(k * h + h), labels))
        compare(f"{method}, 8 steps: state at t = 1", drawn["samples"], state, 1e-4)

    # 4. LoRA: trained by tiltflow, loaded by PEFT, merged by both.
    (at / "lora.toml").write_text(f'[model]\nfile = "{at / "trainer.pt"}"\nargs = {{ num_heads = {shape["num_heads"]} }}\n[[reward]]\nname = "quadratic"\ncenter = [0.3]\nscale = 0.1\n'
                                  '[policy]\nkind = "lora"\nrank = 4\nalpha = 8\ntargets = ["*.attn.qkv", "*.mlp.fc1", "*.adaLN_modulation.1", "final_layer.linear"]\n[evaluation]\nevery = 0\nbase_samples = 8\n'
                                  '[sampler]\nsteps = 6\n[train]\nsteps = 5\nlearning_rate = 1e-2\naverage_decay = 0\n')
    tiltflow("finetune", at / "lora.toml", "--set", "batch=4", "--out", at / "lora")
    merged = SiT(**shape)
    merged.load_state_dict(load_file(at / "lora/model.safetensors"), strict=True)
    with torch.no_grad():
        tuned = merged.eval()(x, t, y)
        moved = ((tuned - out).abs().max() / out.abs().max()).item()
        if moved < 1e-4:
            sys.exit("the LoRA run changed nothing; the comparison would be empty")
        try:
            from peft import PeftModel
            base = SiT(**shape)
            base.load_state_dict(ema.state_dict())
            adapted = PeftModel.from_pretrained(base.eval(), at / "lora/adapter")
            compare("LoRA folder -> PEFT: out", adapted(x, t, y), tuned, 1e-5)
            compare("LoRA merged by PEFT: out", adapted.merge_and_unload()(x, t, y), tuned, 1e-5)
        except ImportError:
            print("peft is not installed: its rows are left out", file=sys.stderr)
        tiltflow("convert", at / "sit.safetensors", at / "half.safetensors", "--lora", at / "lora/adapter", "--lora-strength", 0.5)
        half, whole, plain = load_file(at / "half.safetensors"), load_file(at / "lora/model.safetensors"), ema.state_dict()
        name = "blocks.0.attn.qkv.weight"
        compare("LoRA merged at strength 0.5", half[name] - plain[name], (whole[name] - plain[name]) / 2, 1e-3)

width = max(len(row[0]) for row in rows)
for what, error, tolerance in rows:
    print(f"{what:<{width}}  {error:9.2e}  tolerance {tolerance:.0e}  {'ok' if error <= tolerance else 'EXCEEDED'}")
bad = [row for row in rows if not row[1] <= row[2]]
print(f"parity: {len(rows) - len(bad)} of {len(rows)} within tolerance")
sys.exit(1 if bad else 0)
