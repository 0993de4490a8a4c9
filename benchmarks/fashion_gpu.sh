#!/usr/bin/env bash
# Fashion-MNIST on one accelerator, many runs at once: those of quality_fashion.py in
# short, then the objectives, tuned on one seed and compared on two others.
#
#     bash benchmarks/fashion_gpu.sh [FOLDER]
#
# FOLDER (runs/fashion_gpu) has metrics and logs, and failed.txt for what ended in an
# error. Called again, it goes on. Then, where the results are kept:
#
#     python benchmarks/quality_fashion.py --out=FOLDER/quality --keep
#     python benchmarks/objectives.py --data=fashion_mnist --merge=FOLDER/NAME.json ...
#
# The number of steps of an objective is by its cost on one core, from the file of
# results (`objectives.py --data=fashion_mnist --costs`), as the card is shared.
# Environment: PYTHON; JOBS at once, of which those of objectives are a process per seed;
# STEPS of quality_fashion.py; OBJECTIVE_STEPS and TUNING_STEPS of IMM, SEEDS and TRIALS
# of objectives.py; SAMPLES of a measurement; LIMIT in seconds for all; ONLY, a pattern
# of names.
set -u
cd "$(dirname "$0")/.."
out=$(mkdir -p "${1:-runs/fashion_gpu}" && cd "${1:-runs/fashion_gpu}" && pwd)
python=${PYTHON:-python3}
: "${JOBS:=18}" "${STEPS:=6000}" "${OBJECTIVE_STEPS:=6000}" "${TUNING_STEPS:=2000}"
: "${SEEDS:=0,1}" "${TRIALS:=2}" "${SAMPLES:=10000}" "${LIMIT:=400}" "${ONLY:=.}"
export python out STEPS OBJECTIVE_STEPS TUNING_STEPS SEEDS TRIALS SAMPLES
export TF_CPP_MIN_LOG_LEVEL=3 OMP_NUM_THREADS=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
# Processes that share the card; none of them measures time, so kernels are not chosen
# by trying them, and equal programs are compiled once.
export XLA_PYTHON_CLIENT_PREALLOCATE=false XLA_FLAGS=${XLA_FLAGS---xla_gpu_autotune_level=0}
export JAX_COMPILATION_CACHE_DIR=$out/cache JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=1

quality() { # backend run seed
    # Convolutions are chosen by trying them: the default ones take most of the card.
    case $2 in unet | cifar10) unset XLA_FLAGS ;; esac
    KERAS_BACKEND=$1 "$python" benchmarks/quality_fashion.py --out="$out/quality" \
        --steps="$STEPS" --threads=1 --run="$2" --seeds="$3" \
        --flag=num_samples="$SAMPLES"
}

objective() { # name, with - for spaces
    local name=${1//-/ } file=$out/$1.json given
    [ -f "$file" ] || cp benchmarks/data/objectives_fashion_mnist.json "$file"
    given=(--data=fashion_mnist --budget=time --name="$name" --num_samples="$SAMPLES")
    export KERAS_BACKEND=jax
    "$python" benchmarks/objectives.py "${given[@]}" --out="$file" --seeds=10 --tuning \
        --trials="$TRIALS" --steps="$TUNING_STEPS" || return
    for seed in ${SEEDS//,/ }; do # at once, each into its own file
        cp "$file" "${file%.json}.$seed.json"
        "$python" benchmarks/objectives.py "${given[@]}" --best --seeds="$seed" \
            --out="${file%.json}.$seed.json" --steps="$OBJECTIVE_STEPS" &
    done
    wait
}

one() {
    local log=$*
    log=$out/${log// /_}.log
    "$@" > "$log" 2>&1 || { echo "$*: $(tail -n 1 "$log")" >> "$out/failed.txt"; }
    echo "$SECONDS $*" >> "$out/done.txt"
}
export -f quality objective one

{
    for seed in 1 2; do echo quality torch dit $seed; done
    for seed in 1 2; do echo quality jax dit $seed; done
    for run in cosine identity; do echo quality jax $run 0; done
    for name in terminal-velocity-matching Shortcut consistency-training \
        continuous-consistency differential-IMM IMM,-small-budget MeanFlow \
        improved-MeanFlow SoFlow IMM,-as-published IMM,-time-scale-1,-stride \
        flow-matching; do
        echo objective $name
    done
    for seed in 0 1 2; do echo quality jax flow_matching $seed; done
    for seed in 0 1; do echo quality jax unet $seed; done
    echo quality jax cifar10 0
    for seed in 0 1 2; do echo quality jax published $seed; done
} | grep -E "$ONLY" | timeout -k 5 "$LIMIT" xargs -P "$JOBS" -I{} bash -c "one {}"
cat "$out/failed.txt" 2> /dev/null
exit 0
