# Each target makes its own environment (.venv) when there is none. Python 3.10 or newer and make are all that is needed.
PYTHON ?= python3
BIN := .venv/bin

# What Python makes of each file is kept, whatever the environment says: each process would make it again. All cores make it once
# everything is installed, where pip has one of them do it; a few packages have files of other Pythons, which do not compile.
export PYTHONDONTWRITEBYTECODE :=
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
COMPILE := $(BIN)/python -m compileall -qq -j 0 .venv/lib || true
# A cluster's workers get the versions that its head got (cluster.yaml writes the file).
CONSTRAINTS = $(addprefix --constraint=,$(wildcard constraints.txt))

.PHONY: quickstart test all-tests test-fast test-long test-cluster chaos mutate bench bench-quick bench-cascade verdict cifar10 cifar10-figures cifar10-verify agreement lint smoke clean launch-tools fuzz audit sbom test-gpu bench-gpu

.venv/installed: pyproject.toml
	# Where .venv is a link to an environment's place elsewhere (cluster.yaml): Python makes none through a link.
	$(PYTHON) -m venv $(or $(realpath .venv),.venv)
	$(PIP) $(CONSTRAINTS) --editable .
	$(COMPILE)
	touch $@

.venv/installed-test: .venv/installed
	$(PIP) --editable '.[test]'
	# Without its dependencies: visdom, which its attacks do not use, does not build with today's setuptools.
	$(PIP) --no-deps 'adv-lib>=0.2.8'
	# Without its dependencies: it pins old versions of timm and gdown.
	$(PIP) --no-deps 'robustbench>=1.1'
	$(PIP) gdown geotorch torchdiffeq
	# Without its dependencies: it pins versions that no other package can live with.
	$(PIP) --no-deps 'torchattacks>=3.5.1'
	$(COMPILE)
	touch $@

.venv/installed-bench: .venv/installed-test
	# Without its dependencies, which it pins like torchattacks.
	$(PIP) --no-deps 'pyautoattack>=0.2.0'
	$(COMPILE)
	touch $@

.venv/installed-cluster: .venv/installed
	$(PIP) $(CONSTRAINTS) --editable '.[cluster]'
	$(COMPILE)
	touch $@

quickstart: .venv/installed
	$(BIN)/mi-ray sweep sweeps/quickstart.yaml

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A file at a time in each process: most tests use one core, and one process more than there are cores uses what others leave while
# they wait for servers and programs. In the order of tests/conftest.py, which has the longest first. The type checker, which uses one
# core for a minute when it has no cache, runs beside them.
WORKERS = $(shell cores=$$(nproc 2>/dev/null || echo 2); echo $$((cores < 4 ? cores + 1 : 4)))
test:
	$(MAKE) --no-print-directory --jobs=2 lint all-tests

all-tests: .venv/installed-test
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

# For between two edits: no Ray, no training, no studies computed, no other programs started again and again.
test-fast: .venv/installed-test
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile -m 'not long and not ray and not heavy'

# What takes long for what it adds: trainings killed in mid-epoch, settings that die in all ways, a study on S3, a study damaged all
# over, and tests of tools that are run by hand.
test-long: .venv/installed-test
	$(BIN)/python -m pytest -m long

# A cluster on this machine, as root: two hosts and a laptop in namespaces, launched over SSH with cluster/on_premise.yaml.
test-cluster: .venv/installed-cluster
	tests/cluster/two_hosts.sh
	tests/cluster/slurm_alone.sh

# What tests/launch/test_own_tools.py holds cluster/ against, apart from the program's own environment: SkyPilot, and KubeRay's schema.
launch-tools:
	$(PYTHON) -m venv build/sky && build/sky/bin/pip install --quiet skypilot
	curl --fail --silent --show-error --location --output build/ray.io_rayjobs.yaml \
	  https://raw.githubusercontent.com/ray-project/kuberay/v1.6.2/ray-operator/config/crd/bases/ray.io_rayjobs.yaml

# Whether rows of a GPU are the CPU's within bounds, in under three minutes; one line where there is no GPU.
test-gpu: .venv/installed
	$(BIN)/python -m benchmarks.gpu check

# Faults of every kind at random moments of small studies, whose rows are compared; the same command goes on: make chaos KILLS=1000 SEED=3
chaos: .venv/installed-test
	PYTHONPATH=$(CURDIR):$(CURDIR)/tests $(BIN)/python tests/cluster/chaos.py --kills $(or $(KILLS),100) --seed $(or $(SEED),0) --folder $(or $(FOLDER),chaos)

# Sweep files and stores mutated at random, which must give a plan or rows, or one line: make fuzz MINUTES=10
fuzz: .venv/installed-test
	FUZZ_SECONDS=$$((60 * $(or $(MINUTES),10))) $(BIN)/python -m pytest -m long tests/test_fuzz.py

# Known weaknesses in the source, and in the packages as far as the package index can be asked for them.
audit: .venv/installed-test
	$(BIN)/bandit --quiet --configfile pyproject.toml --severity-level medium --recursive mi_ray
	PYTHONPATH=tests $(BIN)/python -m helpers.audit

# What a release stands on: every package of the environment with its version and licence, as CycloneDX.
# Its tool has an environment of its own: it brings a reader of grammars that each process of Ray would load, a second long.
sbom: .venv/installed-test
	$(PYTHON) -m venv build/sbom
	build/sbom/bin/pip install --quiet "cyclonedx-bom>=5"
	build/sbom/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --output-file build/mi-ray.cdx.json $(BIN)/python

# One-line mutations of the last commit, and which of them the tests catch: make mutate N=60 SEED=0
mutate: .venv/installed-test
	$(BIN)/python tests/mutation/mutate.py --reached --number $(or $(N),60) --seed $(or $(SEED),0) --jobs $(or $(JOBS),2)

# Speed as ratios, with other libraries and plain PyTorch in the same run: benchmarks/README.md
bench: .venv/installed-bench
	$(BIN)/python -m benchmarks.run

bench-quick: .venv/installed-bench
	$(BIN)/python -m benchmarks.run --quick

# Passes and attacks on a GPU against bare loops and other libraries, in under three minutes; one line where there is no GPU.
bench-gpu: .venv/installed-bench
	$(BIN)/python -m benchmarks.gpu bench

# The cascade against all of its stages on all points, and against AutoAttack.
bench-cascade: .venv/installed-bench
	$(BIN)/python -m benchmarks.cascade

# Whether the checks refuse attacks that are broken on purpose and pass sound ones: an hour or two of one core, resumable.
verdict: .venv/installed-bench
	$(BIN)/python -m benchmarks.verdict.run

smoke: .venv/installed
	$(BIN)/mi-ray sweep --smoke sweeps/*.yaml

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache

# The paper on real CIFAR-10 (sweeps/cifar10), into one store, resumable: make cifar10 DATA=FOLDER STORE=results. A folder with the
# images in Hugging Face's layout; torchvision's own copy is downloaded where none is named.
CIFAR10 := fig3b table2 fig3a presets fig2 adaptive seeds fig3a_evasion fig5 frontier epsilon_curve fig4 mi_ol_worst others_worst others_worst_mixup combined_worst remaining_worst fresh_worst fresh_table2 table2_worst undefended_worst
OF_DATA = $(if $(DATA),--set 'dataset={parquet: {path: $(DATA)}}')
cifar10: .venv/installed
	$(foreach name,$(CIFAR10),$(BIN)/mi-ray plan cifar10/$(name) --out $(or $(STORE),results) $(OF_DATA) &&) true
	$(BIN)/mi-ray sweep $(addprefix cifar10/,$(CIFAR10)) --out $(or $(STORE),results) $(OF_DATA)

# Every table and figure of docs/cifar10.md but Fig. 5 again, from the rows in docs/cifar10: nothing is computed.
cifar10-figures: .venv/installed
	$(BIN)/python -m benchmarks.cifar10 draw

# Other libraries' attacks, and Alg. 1 written again, on the networks of the zoo: make agreement DATA=FOLDER
agreement: .venv/installed-bench
	$(BIN)/python -m benchmarks.agreement $(DATA)

# N published cells, drawn at random, computed again from the weights: make cifar10-verify DATA=FOLDER N=20 SEED=0
cifar10-verify: .venv/installed
	$(BIN)/python -m benchmarks.cifar10 verify $(DATA) --number $(or $(N),20) --seed $(or $(SEED),0)
