# Everything here works on a machine with Python 3.11 or newer and nothing else installed.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
JAVA = JAVA_HOME="$$(scripts/java)"

.PHONY: help venv java demo test soak lint lock clean bench-peers bench-data bench-wire bench-server bench-async bench-predicted bench-scaling bench-simulator bench-crossover bench-admm grid-admm bench-lbfgs bench-networks bench-pipeline bench-memory bench-wide bench-speed-up bench-parallelize bench-local-steps bench-recipes

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Firesteel needs Python 3.11 or newer; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

venv: $(STAMP) ## make the virtual environment

java: ## find Java 17 or newer, or install it
	@scripts/java >/dev/null

demo: venv java ## train on handwritten digits on an embedded Spark, compare methods, draw a report
	@$(JAVA) $(RUN) examples/digits_on_spark.py
	@$(VENV)/bin/firesteel bench run recipes/quick.py --out runs/quick
	@$(VENV)/bin/firesteel bench report runs/quick

lint: venv ## ruff and basedpyright
	$(RUN) -m ruff check .
	$(VENV)/bin/basedpyright

test: venv java lint ## lint, types, tests and the documentation's examples
	$(JAVA) $(RUN) -m pytest -q -n 2 --dist loadfile

soak: venv java ## the long tests: kills, leaks, statistics
	$(JAVA) $(RUN) -m pytest -q -m soak

bench-peers: venv java ## samples per second beside TorchDistributor, a bare loop and Spark ML
	$(JAVA) $(RUN) -m benchmarks.peers

bench-data: venv java ## rows per second from a DataFrame to tensors
	$(JAVA) $(RUN) -m benchmarks.data_plane

bench-wire: venv java ## all-reduce across two hosts (needs root and spark-hosts)
	$(JAVA) $(RUN) -m benchmarks.wire

bench-server: venv java ## the parameter server beside Flight, gloo, elephas and sparktorch
	$(JAVA) $(RUN) -m benchmarks.server

bench-async: venv java ## accuracy of the asynchronous methods on MNIST
	$(JAVA) $(RUN) -m benchmarks.asynchronous

bench-predicted: venv java ## predicted and measured epochs across two hosts (needs root and spark-hosts)
	$(JAVA) $(RUN) -m benchmarks.predicted

bench-lbfgs: venv java ## L-BFGS beside Spark ML's; bytes, rounds and memory of ten million parameters
	$(JAVA) $(RUN) -m benchmarks.spark_ml

bench-networks: venv java ## accuracy of networks of every kind on real data, through Spark
	$(JAVA) $(RUN) -m benchmarks.networks

bench-pipeline: venv ## the pipeline beside torch.distributed.pipelining
	$(RUN) -m benchmarks.pipelining

bench-parallelize: venv ## two parts beside one worker, and beside PyTorch's parallelize_module
	$(RUN) -m benchmarks.parallelize

bench-memory: venv ## a network that does not fit into a worker
	$(RUN) -m benchmarks.memory

bench-wide: venv java ## model and data parallelism across two hosts (needs root and spark-hosts)
	$(JAVA) $(RUN) -m benchmarks.wide

bench-speed-up: venv ## data and model parallelism for four architectures, measured and simulated
	$(RUN) -m benchmarks.speed_up

bench-scaling: venv ## speed-up to 256 workers of a small CNN, by simulation
	$(RUN) -m benchmarks.scaling

bench-crossover: venv ## L-BFGS with its history on one worker and spread over all, by simulation
	$(RUN) -m benchmarks.crossover

bench-simulator: venv ## events per second, and a thousand workers in memory
	$(RUN) -m benchmarks.simulator

bench-admm: venv ## training without gradients on MNIST: curves, beside random features
	$(RUN) -m benchmarks.admm

grid-admm: venv ## search its settings; others by GRID="--nu 0.001,0.01 --widths 300,300-300", all by GRID=--help
	$(RUN) -m benchmarks.admm --grid $(GRID)

bench-local-steps: venv ## steps between two meetings of a network in parts, damped and not
	$(RUN) -m benchmarks.local_steps

bench-recipes: venv java ## the published experiments: claims and verdicts (needs data)
	$(JAVA) $(RUN) -m benchmarks.recipes

lock: ## resolve all versions anew and write requirements.lock
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet torch==2.13.0
	build/lock/bin/pip install --quiet '.[spark,bench,tls,dev]'
	build/lock/bin/pip freeze --exclude firesteel | sed -E 's/^(torch==[0-9.]+)\+.*/\1/' > requirements.lock

clean: ## remove what was made here
	rm -rf $(VENV) build dist runs .pytest_cache .ruff_cache
