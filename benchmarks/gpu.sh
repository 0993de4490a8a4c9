#!/usr/bin/env bash
# Training steps, samplers and a profile of DiT-S/2, B/2 and XL/2 on an accelerator.
#
#     bash benchmarks/gpu.sh [FOLDER]
#
# Leaves in FOLDER (runs/gpu) a table and a JSON file of each of benchmarks/train_step.py
# and benchmarks/sample.py, and the table of benchmarks/profile_step.py, for PyTorch and
# JAX in float32 and bfloat16. What fails is said at the end, and does not stop the rest.
# Environment: PYTHON, BACKENDS, DTYPES, MODELS, and BATCH_dit_s_2 (and so on) for the
# batch of one model; EPOCHS and STEPS of what is timed, SECONDS_EACH of a sampler's row.
set -u
cd "$(dirname "$0")/.."
out=${1:-runs/gpu}
python=${PYTHON:-python3}
export TF_CPP_MIN_LOG_LEVEL=3 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export XLA_PYTHON_CLIENT_PREALLOCATE=false # PyTorch's process is not the only one
: "${BATCH_digits:=128}" "${BATCH_dit_s_2:=256}" "${BATCH_dit_b_2:=256}"
: "${BATCH_dit_l_2:=128}" "${BATCH_dit_xl_2:=128}"
mkdir -p "$out"
failed=

run() { # name, command...
    local name=$1
    shift
    echo "== $name"
    "$@" > "$out/$name.md" 2> "$out/$name.log" || failed="$failed $name"
    grep '^|\|^Attention\|^Loss\|^Utilisation' "$out/$name.md"
}

for model in ${MODELS:-dit_s_2 dit_b_2 dit_xl_2}; do
    batch=BATCH_$model
    for dtype in ${DTYPES:-bfloat16 float32}; do
        for backend in ${BACKENDS:-torch jax}; do
            export KERAS_BACKEND=$backend
            name=${model}_${dtype}_$backend
            what="--model=$model --dtype=$dtype"
            run "train_step_$name" "$python" benchmarks/train_step.py $what \
                --batch_size="${!batch}" --epochs="${EPOCHS:-5}" --steps="${STEPS:-10}" \
                --out="$out/train_step_$name.json"
            run "sample_$name" "$python" benchmarks/sample.py $what \
                --batch_sizes="${BATCH_SIZES:-1,16,256}" --seconds="${SECONDS_EACH:-2}" \
                --out="$out/sample_$name.json"
            run "profile_$name" "$python" benchmarks/profile_step.py $what \
                --batch_size="${!batch}" $([ "$backend" = torch ] && echo --jit_compile)
        done
    done
done
if [ -n "$failed" ]; then
    echo "failed:$failed (see their .log)"
    exit 1
fi
