#!/usr/bin/env bash
# A smaller version of the demo: fine-tunes the digit model on ink and requires the tilted-law check to pass.
set -euo pipefail
program=$1; cd "$2"
out=$(mktemp -d); trap 'rm -rf "$out"' EXIT
"$program" finetune recipes/mnist-ink.toml --set check.base_samples=768 --set check.tuned_samples=768 --out "$out/run"
"$program" eval --run "$out/run"
