# Everything a user does, one target each. `make` alone lists them.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
NLOPT := nlopt==2.11.0
SKDIM := scikit-dimension==0.5.0
PSYCOPG := "psycopg[binary]==3.3.9"

.DEFAULT_GOAL := help
.PHONY: help setup setup-data train test soak lint data ground-truth width baselines bench budget agents resume status stop rebuild list sync demo dashboard report verify ship design design-bench gallery clean distclean

# A variable that a target does not take starts the wrong work without a word: refuse it. What each target takes:
USES_train := PROBLEM ARGS
USES_data := PROBLEM N SEED
USES_width := N
USES_baselines := N
USES_ground-truth := N
USES_bench := DEVICE QUICK
USES_budget := DEVICE
USES_sweep := PROBLEM SEEDS EPOCHS STRATEGY SET EDITION BACKEND PROJECT ENTITY STORAGE
USES_agents := N COUNT SWEEP STORAGE PATIENCE LEAVE CHANGED
USES_resume := $(USES_agents) FAILED
USES_status := SWEEP STORAGE
USES_stop := $(USES_status)
USES_rebuild := $(USES_status)
USES_dashboard := $(USES_status)
USES_report := SWEEP RUNS WANDB
USES_verify := RUNS ARGS
USES_ship := RUNS
USES_gallery := RUN
USES_design := MODEL CONDITIONS POLISH FORCE OUT
USES_design-bench := QUICK
goals := $(or $(MAKECMDGOALS),help)
allowed := PYTHON SHELL $(foreach goal,$(goals),$(USES_$(if $(filter sweep-%,$(goal)),sweep,$(goal))))
given := $(foreach v,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $v))),$v))
$(foreach v,$(filter-out $(allowed) -%,$(given)),$(error make $(goals): no such variable: $v; allowed: $(sort $(allowed))))

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9%-]+:.*## / {sub("%", "01", $$1); printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.done: requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; good = (3, 11) <= sys.version_info < (3, 14); \
	  sys.exit(None if good else f"Python 3.11 to 3.13 is needed, not {v}; say PYTHON=/path/to/python3.13")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

setup: $(VENV)/.done ## make .venv from requirements.txt (once)

$(VENV)/.data: $(VENV)/.done
	$(PY) -m pip install --quiet --disable-pip-version-check $(NLOPT)
	@touch $@

setup-data: $(VENV)/.data

# After a graceful Ctrl-C (exit code 130) all is well: make would call it an error
gently = trap : INT; $(strip $(1)); code=$$?; [ $$code -eq 130 ] || exit $$code

# Any flag of train.py can be added: make train ARGS="--seed 2 --wandb disabled"
ARGS ?=
train: setup ## train on the bundled designs: PROBLEM=beams2d; LVAE, pruning, figures
	@$(call gently,$(PY) train.py --problem "$(or $(PROBLEM),beams2d)" --strategy plummet --data sample $(ARGS))

test: setup-data ## run the tests (3 to 7 minutes on 2 idle cores)
	$(PY) -m pytest -q -n auto --dist worksteal tests

soak: setup-data ## the heavy counts: many agents, many kills, PostgreSQL; writes results/faults.md
	$(PY) -m pip install --quiet --disable-pip-version-check $(PSYCOPG)
	rm -f results/faults.md
	SOAK=1 $(PY) -m pytest -q tests/test_sweep_queue.py tests/test_faults.py

lint: setup ## ruff: check and format
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

data: setup-data ## make designs: PROBLEM=beams2d N=1024 SEED=0 (resumable; writes data/PROBLEM-sSEED.npz)
	$(PY) -m tools.designs --problem $(or $(PROBLEM),beams2d) --n $(or $(N),16) --seed $(or $(SEED),0)

ground-truth: ## does pruning find a known dimension? runs what results/ground-truth.csv lacks, N=2 at a time
width: ## does the answer depend on latent_dim? runs what results/width.csv lacks, N=2 at a time
baselines: ## the fronts of dimensions against error; runs what results/baselines.csv lacks, N=2 at a time
ground-truth width baselines: setup
	$(PY) sweep.py create comparisons/$@.yaml --backend local
	$(PY) sweep.py agent --n $(or $(N),2)
	$(if $(filter baselines,$@),$(PY) -m pip install --quiet --disable-pip-version-check $(SKDIM) && $(PY) -m tools.rivals)
	$(PY) -m tools.comparison $@

DEVICE ?= cpu
bench: setup ## speed against the published network; QUICK=1 for a short look, DEVICE=cuda
	$(PY) -m tools.bench --device $(DEVICE) $(if $(QUICK),--quick)

budget: setup ## hours of the six sweeps on this machine, measured: a minute; DEVICE=cuda
	$(PY) -m tools.bench --device $(DEVICE) --budget

# make sweep-01 [PROBLEM= SEEDS= EPOCHS= STRATEGY= SET="a=1 b=2,3" EDITION= BACKEND=wandb|local PROJECT= ENTITY= STORAGE=]
where = $(if $(SWEEP),--sweep "$(SWEEP)")
how = --n "$(or $(N),1)" $(if $(COUNT),--count "$(COUNT)") $(if $(PATIENCE),--patience "$(PATIENCE)") $(if $(LEAVE),--leave) $(if $(CHANGED),--changed)
export STORAGE # sweep.py reads it: a password must stand on no command line
sweep-%: setup ## create a sweep (01 01b 02 03 04 05 06) and make it the current one
	$(strip $(PY) sweep.py create $* $(if $(PROBLEM),--problem "$(PROBLEM)") $(if $(SEEDS),--seeds "$(SEEDS)") $(if $(EPOCHS),--epochs "$(EPOCHS)") \
	  $(if $(STRATEGY),--strategy "$(STRATEGY)") $(if $(SET),--set "$(SET)") $(if $(EDITION),--edition "$(EDITION)") $(if $(BACKEND),--backend "$(BACKEND)") \
	  $(if $(PROJECT),--project "$(PROJECT)") $(if $(ENTITY),--entity "$(ENTITY)"))

agents: setup ## work on the current sweep: N=5 agents, COUNT= runs each, SWEEP="01 02" for others (also PATIENCE= LEAVE=1 CHANGED=1)
	@$(call gently,$(PY) sweep.py agent $(how) $(where))

resume: setup ## go on after a stop or a reboot: N=5 agents; FAILED=1 tries again what failed
	@$(call gently,$(PY) sweep.py resume $(how) $(if $(FAILED),--failed) $(where))

status: setup ## done, running, failed, left, best so far, time to go
	@$(PY) sweep.py status $(where)

stop: setup ## hand out no new runs; those that run are finished
	@$(PY) sweep.py stop $(where)

rebuild: setup ## make rows of results/NN.csv that were lost again, from runs/: SWEEP=id
	@$(PY) sweep.py rebuild $(where)

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
	$(PY) -m tools.verify --runs $(RUNS) $(ARGS)

ship: setup ## the best run of each problem into models/: RUNS=results/baselines.csv, of the default's arm
	$(PY) -m tools.ship $(if $(RUNS),--runs $(RUNS),--runs results/baselines.csv --arm strategy=plummet)

design: setup ## a design for new conditions: MODEL=models/beams2d CONDITIONS="volfrac=0.3 rmin=2 forcedist=0.4" POLISH=5 FORCE=1 OUT=
	@test -n "$(CONDITIONS)" || { echo 'design: say which conditions: make design CONDITIONS="volfrac=0.3 rmin=2 forcedist=0.4"' >&2; exit 2; }
	@$(strip $(PY) -m tools.design --model $(or $(MODEL),models/beams2d) --conditions "$(CONDITIONS)" $(if $(POLISH),--polish "$(POLISH)") \
	  $(if $(FORCE),--force) $(if $(OUT),--out "$(OUT)"))

design-bench: setup-data ## gap to the optimum of designs for fresh conditions: results/design.md; QUICK=1
	$(PY) -m tools.design_bench $(if $(QUICK),--n 20)

demo: setup ## no training: a page with the model of beams, its row, and a design for new conditions
	@$(PY) -m tools.demo

gallery: setup ## what a model draws, and its physics: RUN=runs/<id>, trained with --save_model
	@test -n "$(RUN)" || { echo "gallery: say which run: make gallery RUN=runs/<id>" >&2; exit 2; }
	$(PY) -m tools.gallery --run $(RUN)

clean: ## remove caches and pages (report/): what can be made again, never a run
	rm -rf report .pytest_cache .hypothesis .ruff_cache __pycache__ tests/__pycache__

distclean: clean ## also remove .venv, the designs in data/ and the sweeps' state
	rm -rf $(VENV) data .sweeps
