# Everything a user does, one target each. `make` alone lists them.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
NLOPT := nlopt==2.11.0
PSYCOPG := "psycopg[binary]==3.3.9"

.DEFAULT_GOAL := help
.PHONY: help setup setup-data train test soak lint data ground-truth width bench budget agents resume status stop list sync dashboard report verify ship gallery clean distclean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9%-]+:.*## / {sub("%", "01", $$1); printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.done: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; say PYTHON=/path/to/python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

setup: $(VENV)/.done ## make .venv from requirements.txt (once)

$(VENV)/.data: $(VENV)/.done
	$(PY) -m pip install --quiet --disable-pip-version-check $(NLOPT)
	@touch $@

setup-data: $(VENV)/.data

# Any flag of train.py can be added: make train ARGS="--seed 2 --wandb disabled"
ARGS ?=
train: setup ## train on the bundled beams: LVAE, pruning, figures
	$(PY) train.py --problem beams2d --strategy plummet --data sample $(ARGS)

test: setup-data ## run the tests (4 to 10 minutes on 2 cores)
	$(PY) -m pytest -q -n auto --dist worksteal tests

soak: setup-data ## the heavy counts: many agents, many kills, PostgreSQL; writes results/faults.md
	$(PY) -m pip install --quiet --disable-pip-version-check $(PSYCOPG)
	$(PY) -m pytest -q tests/soak_sweep.py tests/soak_faults.py

lint: setup ## ruff: check and format
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

data: setup-data ## make designs: PROBLEM=beams2d N=1024 SEED=0 (resumable; writes data/PROBLEM-sSEED.npz)
	$(PY) data.py --problem $(or $(PROBLEM),beams2d) --n $(or $(N),16) --seed $(or $(SEED),0)

ground-truth: setup ## toy designs of known dimension, every strategy, three seeds: the README's table
	$(PY) groundtruth.py

width: setup ## does the answer depend on latent_dim? runs what results/width.csv lacks; BACKEND=local
	$(PY) sweep.py create comparisons/width.yaml --backend local
	$(PY) sweep.py agent --n $(or $(N),2)
	$(PY) width.py

DEVICE ?= cpu
bench: setup ## speed against the published network; QUICK=1 for a short look, DEVICE=cuda
	$(PY) bench.py --device $(DEVICE) $(if $(QUICK),--quick)

budget: setup ## hours of the six sweeps on this machine, measured: a minute; DEVICE=cuda
	$(PY) bench.py --device $(DEVICE) --budget

# make sweep-01 [PROBLEM= SEEDS= EPOCHS= STRATEGY= SET="a=1 b=2,3" EDITION= BACKEND=wandb|local PROJECT= ENTITY= STORAGE=]
where = $(if $(SWEEP),--sweep "$(SWEEP)") $(if $(STORAGE),--storage "$(STORAGE)")
sweep-%: setup ## create a sweep (01 01b 02 03 04 05 06) and make it the current one
	$(strip $(PY) sweep.py create $* $(if $(PROBLEM),--problem "$(PROBLEM)") $(if $(SEEDS),--seeds "$(SEEDS)") $(if $(EPOCHS),--epochs "$(EPOCHS)") \
	  $(if $(STRATEGY),--strategy "$(STRATEGY)") $(if $(SET),--set "$(SET)") $(if $(EDITION),--edition "$(EDITION)") $(if $(BACKEND),--backend "$(BACKEND)") \
	  $(if $(PROJECT),--project "$(PROJECT)") $(if $(ENTITY),--entity "$(ENTITY)") $(if $(STORAGE),--storage "$(STORAGE)"))

agents: setup ## work on the current sweep: N=5 agents, COUNT= runs each, SWEEP="01 02" for others
	$(strip $(PY) sweep.py agent --n $(or $(N),1) $(if $(COUNT),--count "$(COUNT)") $(where))

resume: setup ## go on after a stop or a reboot: N=5 agents
	$(strip $(PY) sweep.py resume --n $(or $(N),1) $(if $(COUNT),--count "$(COUNT)") $(where))

status: setup ## done, running, failed, left, best so far, time to go
	@$(PY) sweep.py status $(where)

stop: setup ## hand out no new runs; those that run are finished
	@$(PY) sweep.py stop $(where)

list: setup ## all sweeps; * marks the current ones
	@$(PY) sweep.py list

sync: setup ## upload to W&B what was logged offline
	$(PY) sweep.py sync

dashboard: setup ## Optuna's dashboard on the current local sweep (pip install optuna-dashboard)
	$(PY) sweep.py dashboard $(where)

report: setup ## all questions and answers, or SWEEP=02 (RUNS=folder or results/NN.csv; WANDB=entity/project/id)
	$(PY) report.py $(if $(SWEEP),--sweep "$(SWEEP)") $(if $(WANDB),--wandb $(WANDB),--runs $(or $(RUNS),runs))

verify: setup ## do its rows come out again? a random tenth: RUNS=results/01-first.csv, ARGS="--ids a b"
	@test -n "$(RUNS)" || { echo "verify: say which rows: make verify RUNS=results/01-first.csv" >&2; exit 2; }
	$(PY) verify.py --runs $(RUNS) $(ARGS)

ship: setup ## the best run of each final setting into models/: RUNS="results/NN-models.csv ..."
	$(PY) ship.py --runs $(or $(RUNS),$(wildcard results/*-models.csv))

gallery: setup ## what a model draws, and its physics: RUN=runs/<id>, trained with --save_model
	@test -n "$(RUN)" || { echo "gallery: say which run: make gallery RUN=runs/<id>" >&2; exit 2; }
	$(PY) gallery.py --run $(RUN)

clean: ## remove caches and pages (report/): what can be made again, never a run
	rm -rf report .pytest_cache .hypothesis .ruff_cache __pycache__ tests/__pycache__

distclean: clean ## also remove .venv, the designs in data/ and the sweeps' state
	rm -rf $(VENV) data .sweeps
