# `make demo` and `make test` each make the virtual environment that they need; nothing else has
# to be installed beforehand than Python 3.11 or newer.
#
#   make demo                                      a simulated city that the weights never saw
#   make demo RASTER="a.tif b.tif" PHOTOS="*.jpg"  the same on your own files
#   make test                                      format, lint, types, tests
#   make demo TORCH="torch --index-url URL"        with another build of PyTorch

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# The first interpreter that is new enough; say PYTHON=... to choose another.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python3.14 python; do \
    $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
    && echo $$python && break; done)
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

DEMO := demo
RASTER ?=
PHOTOS ?=
MODEL ?= ground
DEMO_SEED ?= 9001
DEMO_SIZE_M ?= 1000
DEMO_PHOTOS ?= 50

.PHONY: help venv demo demo-city demo-own test lint types format clean

help:
	@sed -n 's/^#   //p' Makefile

venv: $(READY)

$(READY): pyproject.toml
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer was found; install one or say PYTHON=path" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

# --- what CI runs: the cheap checks first, pytest's closing line last ---------------------------

test: lint types
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# --- the demo: public commands only -------------------------------------------------------------

CIPER := $(BIN)/ciper
CITY := $(DEMO)/city
OWN := $(DEMO)/own
WEIGHTS := $(wildcard ciper/weights/$(MODEL)/model.safetensors $(filter %.safetensors,$(MODEL)))

# Empty files whose names hold the settings: another setting makes what depends on it anew.
CITY_STAMP := $(DEMO)/.city-$(DEMO_SEED)-$(DEMO_SIZE_M)-$(DEMO_PHOTOS)
MODEL_STAMP := $(DEMO)/.model-$(subst /,_,$(MODEL))

# Links of a report that is copied one folder up.
RELINK = sed -E 's@(\]\(|src=")([^):/"\#][^):"]*[)"])@\1$(1)/\2@g'

ifneq ($(strip $(RASTER)$(PHOTOS)),)
demo: demo-own
else
demo: demo-city
endif

$(CITY_STAMP) $(MODEL_STAMP):
	mkdir -p $(DEMO)
	rm -f $(DEMO)/$(firstword $(subst -, ,$(@F)))-*
	touch $@

$(CITY)/poses.csv: $(CITY_STAMP) | $(READY)
	rm -rf $(CITY)
	$(CIPER) simulate $(CITY) --seed $(DEMO_SEED) --size-m $(DEMO_SIZE_M) --num-photos $(DEMO_PHOTOS)
	touch $@

$(DEMO)/gallery/manifest.json: $(CITY)/poses.csv $(MODEL_STAMP) $(WEIGHTS)
	rm -rf $(DEMO)/gallery
	$(CIPER) index $(CITY)/aerial.tif --out $(DEMO)/gallery --model $(MODEL)
	touch $@

demo-city: $(DEMO)/gallery/manifest.json
	rm -rf $(DEMO)/report $(DEMO)/pictures
	mkdir -p $(DEMO)/pictures
	$(CIPER) localize $(CITY)/photos/*.jpg --gallery $(DEMO)/gallery --model $(MODEL) --json \
	    > $(DEMO)/answers.json
	for photo in $$(ls $(CITY)/photos/*.jpg | head -n 4); do \
	    $(CIPER) localize "$$photo" --gallery $(DEMO)/gallery --model $(MODEL) --csv \
	        --picture $(DEMO)/pictures/$$(basename "$$photo" .jpg).png; \
	done
	$(CIPER) evaluate $(CITY)/poses.csv --gallery $(DEMO)/gallery --model $(MODEL) --out $(DEMO)/report
	$(call RELINK,report) $(DEMO)/report/report.md > $(DEMO)/report.md
	{ printf '\n## Some of the photos\n'; \
	  for picture in $(DEMO)/pictures/*.png; do \
	      printf '\n![%s](pictures/%s)\n' "$$(basename $$picture .png)" "$$(basename $$picture)"; \
	  done; } >> $(DEMO)/report.md
	@echo "see $(DEMO)/report.md"

demo-own: $(READY)
	@test -n "$(strip $(RASTER))" -a -n "$(strip $(PHOTOS))" || \
	    { echo "make demo needs both RASTER=... and PHOTOS=..., or neither" >&2; exit 2; }
	rm -rf $(OWN)
	mkdir -p $(OWN)/pictures
	$(CIPER) index $(RASTER) --out $(OWN)/gallery --model $(MODEL)
# Status 2 with answers: some of the photos cannot be used, which must not cost the others' report.
	$(CIPER) localize $(PHOTOS) --gallery $(OWN)/gallery --model $(MODEL) --csv \
	    --picture $(OWN)/pictures/photo.png > $(OWN)/answers.csv || \
	    { status=$$?; test $$status -eq 2 -a -s $(OWN)/answers.csv || exit $$status; }
	{ printf '# Where the photos were taken\n\n'; \
	  sed -e 's/,/ | /g' -e 's/^/| /' -e 's/$$/ |/' -e '1{p;s/[^|]\{1,\}/---/g}' $(OWN)/answers.csv; \
	  for picture in $(OWN)/pictures/*.png; do \
	      test -e "$$picture" || continue; \
	      printf '\n![%s](own/pictures/%s)\n' "$$(basename $$picture .png)" "$$(basename $$picture)"; \
	  done; } > $(DEMO)/report.md
	@echo "see $(DEMO)/report.md"

clean:
	rm -rf $(DEMO) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find ciper tests -name __pycache__ -type d -prune -exec rm -rf {} +
