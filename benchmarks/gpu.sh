#!/bin/bash
# What needs a GPU, in twelve to fourteen minutes: tests, training steps, AutoAttack, a robust and a certified training.
#
#     benchmarks/gpu.sh [--rehearse] [--cifar DATA] [--only PART,...] [--work FOLDER] [FOLDER]
#
# DATA is a folder with cifar-10-batches-py, or CIFAR-10 or a part of it as an .npz file; without it, CIFAR-10 is where
# ART keeps its data. Results and a log go to FOLDER ($OUT, or runs/gpu/results) as each part gives them. The package
# must be installed (pip install -e .), with pytest and the extra "attacks". The parts, each with its limit in seconds:
#
#     tests      60    the tests that are marked cuda
#     steps      60    training steps beside a loop by hand and ART's trainers, PreActResNet-18
#     autoattack 120   AutoAttack beside the authors' code, PreActResNet-18 at 3 x 32 x 32
#     robust     420   the recipe cifar10-ten-minutes, as many epochs as 300 s allow, then AutoAttack on 1,000 images
#     certified  180   a network of cifar10-certified-gpu, as many epochs as 120 s allow, then its certificate
#
# A part that fails does not stop the next one. The same command continues: it skips the parts that have finished (files
# in --work, runs/gpu, say which), copies their results to FOLDER again, and the last two parts go on from their last
# epoch. The exit status is the number of parts that did not finish. --rehearse runs everything on a CPU in a few
# minutes, tiny and on the digits; it works in runs/gpu-rehearsal, and its results are no measurements.
set -u
cd "$(dirname "$0")/.." || exit 1
names=(tests steps autoattack robust certified)
work= folder=${OUT:-} only="${names[*]}" cifar=() rehearse=
while [ $# -gt 0 ]; do
  case $1 in
    --rehearse) rehearse=yes ;;
    --work) work=${2:?--work: got nothing, expected a folder.}; shift ;;
    --cifar) cifar=(--cifar "${2:?--cifar: got nothing, expected a folder or an .npz file.}"); shift ;;
    --only) only=${2:?--only: got nothing, expected parts such as robust,certified.}; only=${only//,/ }; shift ;;
    -*) echo "gpu.sh: got $1, expected --rehearse, --cifar, --only, --work or a folder." >&2; exit 64 ;;
    *) folder=$1 ;;
  esac
  shift
done
for name in $only; do
  [[ " ${names[*]} " == *" $name "* ]] || { echo "--only: got $name, expected some of ${names[*]}." >&2; exit 64; }
done
[ ${#cifar[@]} -eq 0 ] || [ -e "${cifar[1]}" ] || { echo "--cifar: got ${cifar[1]}, which is not there." >&2; exit 64; }
: "${work:=runs/gpu${rehearse:+-rehearsal}}"
mkdir -p "${folder:=$work/results}" "$work/kept" || exit 1
cp -r "$work/kept/." "$folder"

# run NAME SECONDS COMMAND...: run a part within its seconds, unless it has finished; keep the results so far.
unfinished=0
run() {
  local name=$1 seconds=$2 begun=$SECONDS status
  shift 2
  [[ " $only " == *" $name "* ]] || return
  if [ -e "$work/finished-$name" ]; then
    echo "$name: finished earlier."
    return
  fi
  {
    echo "$name, at most $seconds s: $*"
    timeout --kill-after=10 "$seconds" "$@"
    status=$?
    echo "$name: status $status after $((SECONDS - begun)) s."
    echo "$status" >"$work/status"
  } 2>&1 | tee -a "$folder/log.txt"
  if [ "$(cat "$work/status")" -eq 0 ]; then touch "$work/finished-$name"; else unfinished=$((unfinished + 1)); fi
  cp "$folder"/*.json "$folder/log.txt" "$work/kept/" 2>"$work/missing" || true # no part may have written a record yet
}

python=${PYTHON:-python3}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
marked=$(grep -rlw --include='test_*.py' cuda tests)
if [ -n "$rehearse" ]; then
  export CUDA_VISIBLE_DEVICES=
  limits=(300 300 600 300 300) epochs_seconds=(1 1)
  steps=(--quick --networks small-cnn --within 20)
  autoattack=(--quick --cases preact-resnet18)
  training=(--quick)
else
  limits=(60 60 120 420 180) epochs_seconds=(300 120)
  steps=(--device cuda --networks preact-resnet18 --rounds 3 --lasting 0 --call 0.3 --within 30 --results "$folder")
  autoattack=(--device gpu --cases preact-resnet18 --within 60 --results "$folder" "${cifar[@]}")
  training=("${cifar[@]}")
fi

# shellcheck disable=SC2086 # one argument for each file
run tests "${limits[0]}" "$python" -m pytest -m cuda --tb=short -rfE -p no:cacheprovider $marked
run steps "${limits[1]}" "$python" benchmarks/training_step.py "${steps[@]}"
run autoattack "${limits[2]}" "$python" benchmarks/autoattack_speed.py "${autoattack[@]}"
run robust "${limits[3]}" "$python" benchmarks/gpu.py cifar10-ten-minutes \
  --seconds "${epochs_seconds[0]}" --work "$work" --out "$folder/gpu_robust.json" "${training[@]}"
run certified "${limits[4]}" "$python" benchmarks/gpu.py cifar10-certified-gpu --row orthogonal \
  --seconds "${epochs_seconds[1]}" --work "$work" --out "$folder/gpu_certified.json" "${training[@]}"

echo "gpu.sh: $unfinished of ${#names[@]} parts did not finish; the results are in $folder."
exit "$unfinished"
