# make          install what is missing and build build/release/tiltflow;   make build  the tests as well
# make demo     align a digit model with a reward and show that it samples the tilted law (runs/demo/report.html)
# make test     build and run the fast tests;   make test-slow  the long ones
# make install  install library, program, CMake package and pkg-config file (PREFIX=/usr/local)
# make example  build and run examples/embed, which adds tiltflow as a subdirectory (part of make test)
# make examples install into build/install; build and run examples/, which use that (part of make test)
# make format   format all sources;   make format-check  name those that differ (part of make test);   make lint  clang-tidy
# make parity   compare with PyTorch live: models, gradients, files both ways, LoRA, sampler states
# make bench    speed figures of this machine
PRESET ?= release
PREFIX ?= /usr/local
JOBS ?= $(shell nproc)
BIN = build/release/tiltflow

.PHONY: all deps configured program build install demo example examples format format-check lint test test-slow parity bench clean
all: program

deps:
	scripts/install-deps

configured: deps
	@cmake --preset $(PRESET) -DTILTFLOW_PYTHON="$$(scripts/libtorch-python)" > build/configure-$(PRESET).log || (cat build/configure-$(PRESET).log; exit 1)

program: configured
	cmake --build build/$(PRESET) -j $(JOBS) --target tiltflow

build: configured
	cmake --build build/$(PRESET) -j $(JOBS)

demo: program
	$(BIN) finetune recipes/mnist-ink.toml --out runs/demo --resume
	$(BIN) eval --run runs/demo

install: program
	cmake --install build/$(PRESET) --prefix $(PREFIX)

example: program
	JOBS=$(JOBS) scripts/test-subproject build/$(PRESET)

# Libraries with sanitizers are not for installation.
examples: program
	$(if $(filter asan ubsan tsan,$(PRESET)),,JOBS=$(JOBS) scripts/test-package build/$(PRESET))

format:
	scripts/format

format-check: deps
	scripts/format --check

lint: deps
	scripts/lint

test: format-check build example examples
	cd build/$(PRESET) && ctest --output-on-failure -L fast -j $(JOBS)

test-slow: build
	cd build/$(PRESET) && ctest --output-on-failure -L slow

parity: program
	@test -x build/venv/bin/python || python3 -m venv build/venv
	@build/venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 numpy safetensors peft
	build/venv/bin/python scripts/parity/run.py --tiltflow $(BIN)

bench: program
	for what in gemm forward vjp train-step pretrain sample am assign startup; do $(BIN) bench $$what; done

clean:
	rm -rf build/release build/cuda build/dev build/asan build/ubsan build/tsan build/example build/examples build/install
