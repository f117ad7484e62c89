# The project's commands; `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
OLDEST := 5.17.0
BIN := $(VENV)/bin
READY := $(VENV)/.ready
APP_READY := $(VENV)/.app
PORT ?= 8501
# A worker for each processor, four at most; a file's tests stay together, for they share a server or a run. One thread
# for each: those of several workers would wait for one another. Files come in tests/conftest.py's order: xdist's own,
# by the number of tests, has those last that take longest.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

app: $(APP_READY) ## open the story page at http://localhost:8501 with the model of this clone
	cd space && ../$(BIN)/streamlit run app.py --server.port $(PORT)

test: $(READY) chromium compiler ## lint, types and tests, browser tests included (minutes)
	$(PYTEST) -m "not slow"

test-all: $(READY) chromium compiler ## all tests, the long ones too
	$(PYTEST)

test-oldest: ## the tests on the oldest supported transformers, in an environment of their own
	mkdir -p build
	sed -e 's/^transformers==.*/transformers==$(OLDEST)/' -e 's/^huggingface_hub==.*/huggingface_hub<2/' constraints.txt \
		> build/constraints-oldest.txt
	$(MAKE) test VENV=.venv-oldest CONSTRAINTS=build/constraints-oldest.txt

conformance: $(READY) ## transformers' own model tests against both recipes; UPSTREAM=a checkout has more of them (minutes)
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) parameterized httpx
	$(BIN)/python tests/conformance/run.py $(if $(UPSTREAM),--upstream $(UPSTREAM))

bench: $(READY) ## speed side by side with a peer; LLAMA2C=a folder with run and runq takes them along (a minute)
	$(BIN)/python -m benchmarks.speed $(if $(LLAMA2C),--llama2c $(LLAMA2C))

# A checkpoint, its name, and the judge of its stories.
CHECKPOINTS = modeling:modern:modeling/classic modeling/classic:classic:modeling \
	$(foreach config,$(wildcard $(PEERS)/*/config.json),$(patsubst %/config.json,%,$(config)):$(notdir \
	$(patsubst %/config.json,%,$(config))):modeling/classic)

results: $(READY) ## docs/results, card and README anew; DATA=folder of the parquet files, PEERS=of peers (hours)
	for one in $(CHECKPOINTS); do \
		set -- $$(echo $$one | tr : ' ') && $(BIN)/python -m training.evaluate suite --model $$1 --name $$2 --judge $$3 \
			--dataset $(DATA)/validation.parquet --training_dataset $(DATA)/train.parquet $(DATA)/fragments.parquet || exit 1; \
	done
	$(BIN)/python -m training.coherence --dataset $(DATA)/validation.parquet
	$(BIN)/python -m training.biases --dataset $(DATA)/train.parquet
	$(BIN)/python -m benchmarks.comparison
	$(BIN)/python -m benchmarks.card

lint: $(READY) ## ruff and mypy
	$(BIN)/pytest tests/test_style.py

chromium: $(READY) ## find a Chromium for the browser tests, or install one
	@$(BIN)/python tests/browser/chromium.py

# Stories are told without one too, more slowly; the tests of the C decoder are then skipped.
compiler: ## find a C compiler for the C decoder's tests, or install one
	@command -v cc > /dev/null || (apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev) \
		|| echo "no C compiler and no way to install one: the C decoder is not tested"

train: $(READY) ## train the modern recipe on TinyStories from the Hub
	$(BIN)/accelerate launch training/train.py --config training/configs/modern.yaml

# On a GPU give FLAGS what fills it, e.g. FLAGS="--compile true --micro_batch_rows 64 --batch_rows 64".
flagship: $(READY) ## train two teachers, then the student that learns from both; goes on where it was stopped
	for run in modern classic student; do \
		$(BIN)/accelerate launch training/train.py --config training/configs/$$run.yaml $(FLAGS) || exit 1; \
	done

clean: ## remove the environment and what tools left behind
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# What the page needs and no more, in the versions of the constraints (the requirements pin the same, which test-oldest
# has others of); without compiling ahead, since the page imports a tenth of it. From PyPI alone, so that no second
# index has to be near; PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu spares Linux the CUDA.
$(APP_READY): space/requirements.txt $(CONSTRAINTS)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing torch, transformers and streamlit into $(VENV) (once)"
	sed -e '/^--/d' -e 's/==.*//' space/requirements.txt > $(VENV)/requirements.txt
	$(BIN)/pip install --quiet --no-compile --constraint $(CONSTRAINTS) --requirement $(VENV)/requirements.txt
	touch $@

# On top of what the page needs, torch by its pin among it: other packages then take it as it is.
$(READY): pyproject.toml $(CONSTRAINTS) $(APP_READY)
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) --editable '.[train,evaluate,finetune,onnx,gguf,space,test]'
	touch $@

.PHONY: help app test test-all test-oldest conformance bench results lint chromium compiler train flagship clean
