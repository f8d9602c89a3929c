#!/usr/bin/env bash
# Build the images that infra/k8s names: bash infra/image/build.sh [cpu|cuda|mlflow ...]
#   BUILDER=docker|podman|buildah    build program; default: the first of these that is installed
#   BASE=IMAGE                       base image with Python 3.11 or 3.12 on Debian
#   BUILD_FLAGS="..."                further options of the build program, e.g. --volume for a package index's settings
set -euo pipefail
cd "$(dirname "$0")/../.."
fail() { echo "error: $1" >&2; exit 2; }

for program in docker podman buildah; do command -v "$program" >/dev/null && builder=${BUILDER:-$program} && break; done
[ -n "${builder:-}" ] || fail "no build program found: install docker, podman or buildah"
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
flags=()
[ "$builder" = docker ] || flags+=(--format docker)
[ "$builder" = buildah ] && flags+=(--layers)
[ -z "${BASE:-}" ] || flags+=(--build-arg "BASE=$BASE")
read -ra more <<<"${BUILD_FLAGS:-}"

for target in "${@:-cpu}"; do
  case $target in cpu | cuda | mlflow) ;; *) fail "unknown image $target: use cpu, cuda or mlflow" ;; esac
  echo "image: scene-dynamics-$target:$version"
  "$builder" build "${flags[@]}" ${more[@]+"${more[@]}"} --build-arg "GIT_COMMIT=$(git rev-parse HEAD 2>/dev/null || echo unknown)" \
    --file infra/image/Dockerfile --target "$target" --tag "scene-dynamics-$target:$version" .
done
