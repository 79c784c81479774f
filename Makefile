# Every target sets up what it needs: the first call creates .venv from constraints.txt, later calls start in seconds.
PYTHON ?= $(shell for v in 3.11 3.12 3.13; do p=$$(command -v python$$v 2>/dev/null) && $$p -c '' 2>/dev/null && echo $$p && break; done || command -v python3)
BIN := .venv/bin
READY := .venv/.ready

.PHONY: env demo test browser lint bench bench-kernels bench-study kernels-slow torture clean

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed: make PYTHON=/path/to/python3.12" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)

env: $(READY)  ## only .venv with all that development needs; . .venv/bin/activate

demo: $(READY)  ## the main job: a stream of tasks in, a forgetting report out
	@$(BIN)/python experiments/demo.py

test: $(READY)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

browser: $(READY)  ## the pages in a real browser: installs playwright and its Chromium, then runs tests/browser
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,browser]'
	@test -n "$(NESTED_BROWSER)" || $(BIN)/python -m playwright install chromium || { \
	  echo "Chromium cannot be downloaded here. Install one by other means (a package of your system, or a copy from another" >&2; \
	  echo "machine), and name it: make browser NESTED_BROWSER=/path/to/chrome" >&2; exit 2; }
	@OMP_NUM_THREADS=1 NESTED_BROWSER="$(NESTED_BROWSER)" $(BIN)/python -m pytest tests/browser

lint: $(READY)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright

bench: $(READY)  ## ratios against a bare torch loop, measured side by side
	@$(BIN)/python experiments/loop_overhead.py

bench-kernels: $(READY)  ## each form of each kernel beside the others, checked first; writes reports/kernels.md
	@$(BIN)/python experiments/bench_kernels.py

bench-study: $(READY)  ## what a study costs beside its training, and two workers beside one: ten minutes
	@OMP_NUM_THREADS=1 $(BIN)/python experiments/study_speed.py

kernels-slow: $(READY)  ## every kernel compiled for the chip, the slow ones too, by this Triton and by 3.6
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target .venv/triton-3.6 triton==3.6.0
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/kernels/aot -m "slow or not slow"
	@PYTHONPATH=.venv/triton-3.6 $(BIN)/python -c "import triton; assert triton.__version__ == '3.6.0', triton.__file__"
	@OMP_NUM_THREADS=1 PYTHONPATH=.venv/triton-3.6 $(BIN)/python -m pytest tests/kernels/aot -m "slow or not slow"

torture: $(READY)  ## 8 kills at named points and 20 at random moments, each resumed and compared bit for bit
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow or not slow" tests/test_kill.py

clean:
	rm -rf .venv
