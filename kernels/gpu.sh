#!/usr/bin/env bash
# Everything that needs a GPU, in one go: bash kernels/gpu.sh OUT [--dry-run] [--wheels FOLDER] [--only STEP,STEP]
#
# On a machine with a GPU, Python 3.12, CuPy 14, PyTorch 2.11 and torchvision 0.26, from the root of a checkout. Nothing
# is fetched: packages that are missing can lie in FOLDER as wheels. PYTHON names another python3.
#   --dry-run: without a GPU, the same steps in the emulator, small, and no times.
#   --only: of the steps (their names are in summary.json) these alone, where one go takes longer than one may.
# Each step runs whatever became of those before. OUT receives log.txt, summary.json and the steps' own files; the exit
# status is 1 if a step failed.
set -uo pipefail
cd "$(dirname "$0")/.."

usage() { echo "usage: bash kernels/gpu.sh OUT [--dry-run] [--wheels FOLDER] [--only STEP,STEP]" >&2; exit 2; }
out="" dry="" wheels="" only=""
while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) dry=1 ;;
    --wheels) [ $# -gt 1 ] || usage; wheels=$2; shift ;;
    --only) [ $# -gt 1 ] || usage; only=$2; shift ;;
    -*) usage ;;
    *) [ -z "$out" ] || usage; out=$1 ;;
  esac
  shift
done
[ -n "$out" ] || usage
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
python=${PYTHON:-python3}
work=$(mktemp -d) || exit 2
trap 'rm -rf "$work"' EXIT
: >"$out/log.txt" && : >"$work/steps"
failed=0

# step NAME SECONDS COMMAND...: run it, its output to the log, no longer than so many seconds
step() {
  local name=$1 limit=$2 begun=$SECONDS status=0
  shift 2
  case ",${only:-$name}," in *",$name,"*) ;; *) return ;; esac
  printf '\n==== %s: %s\n' "$name" "$*" >>"$out/log.txt"
  timeout "$limit" "$@" >>"$out/log.txt" 2>&1 || status=$?
  [ "$status" -eq 0 ] || failed=1
  printf '%s\t%s\t%s\n' "$name" "$status" "$((SECONDS - begun))" >>"$work/steps"
  printf '%-20s %s, %s s\n' "$name" "$([ "$status" -eq 0 ] && echo ok || echo "FAILED ($status)")" "$((SECONDS - begun))"
}

install() {
  if [ -n "$wheels" ]; then "$python" -m pip install --no-index --no-deps "$wheels"/*.whl || return; fi
  "$python" -m pip install --no-index --no-deps --no-build-isolation --editable .
}

versions() {
  "$python" - <<'PYTHON'
import importlib.metadata as metadata, platform
for name in ("numpy", "cupy-cuda13x", "torch", "torchvision", "nvidia-cuda-nvrtc", "hypothesis", "beartype"):
    try:
        print(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        print(name, "isn't installed")
print("python", platform.python_version(), platform.platform())
from refnet.kernels.cuda.nvrtc import compiler
print("NVRTC", compiler().version, compiler().path)
PYTHON
}

sanitizer() { # TOOL: its findings are an exit status of 9
  compute-sanitizer --tool "$1" --error-exitcode 9 --print-limit 20 "$python" -m refnet.kernels.cuda.every_kernel
}

export -f install versions sanitizer
export python wheels OPENBLAS_NUM_THREADS=${OPENBLAS_NUM_THREADS:-1} HYPOTHESIS_PROFILE=default PYTHONUNBUFFERED=1
tests=("$python" -m pytest -m gpu tests/kernels --junitxml="$out/gpu-tests.xml")

[ -n "$dry" ] || step install 300 bash -c install
step versions 60 bash -c versions
if [ -n "$dry" ]; then
  step tests 1200 env REFNET_DRY_RUN=1 "${tests[@]}"
  step every-kernel 1200 "$python" -m refnet.kernels.cuda.every_kernel --emulated
  step conformance 1200 "$python" -m refnet.kernels.cuda.conformance record "$out/conformance.npz" --device emulated
  step replay 1200 "$python" -m refnet.kernels.cuda.conformance replay "$out/conformance.npz"
  step benchmark 1200 "$python" -m refnet.kernels.cuda.benchmark "$out" --dry-run
  step train-shapes 600 "$python" -m refnet train shapes --out "$work/shapes" --steps 2 --val-count 4
else
  step nvidia-smi 60 nvidia-smi
  step tests 600 "${tests[@]}"
  step conformance 300 "$python" -m refnet.kernels.cuda.conformance record "$out/conformance.npz"
  step benchmark 600 "$python" -m refnet.kernels.cuda.benchmark "$out"
  step training 400 "$python" -m refnet.kernels.cuda.benchmark_training "$out"
  step train-shapes 400 "$python" -m refnet train shapes --device cuda --out "$work/shapes"
  for tool in memcheck racecheck initcheck synccheck; do step "$tool" 600 bash -c "sanitizer $tool"; done
fi
[ ! -f "$work/shapes/results.json" ] || cp "$work/shapes/results.json" "$out/train-shapes.json"

[ -s "$work/steps" ] || { echo "no step is called $only" >&2; exit 2; }

"$python" - "$work/steps" "$out/summary.json" <<'PYTHON'
import json, sys
steps = [line.rstrip("\n").split("\t") for line in open(sys.argv[1])]
summary = [{"step": name, "status": int(status), "seconds": int(seconds)} for name, status, seconds in steps]
with open(sys.argv[2], "w") as file:
    json.dump(summary, file, indent=1)
PYTHON
[ "$failed" -eq 0 ] && echo "all steps ok; see $out" || echo "some steps failed; see $out/log.txt"
exit "$failed"
