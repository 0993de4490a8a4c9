#!/usr/bin/env bash
# What one accelerator does with the library, in at most 8 minutes.
#
#     bash benchmarks/gpu.sh [FOLDER]
#
# Tests that an accelerator has failed; then the training step of DiT-XL/2 and S/2 in
# bfloat16 under PyTorch and JAX (time, utilisation, peak memory, shares of attention,
# optimizer and loss), `generate` in 1, 2, 4 and 8 steps, and the loops written by hand
# for S/2. Every stage has its own limit and writes JSON when it ends; failing tests are
# written as they fail. FOLDER (runs/gpu) then has a file for each, and goals.md.
# Environment: PYTHON; BACKENDS and MODELS; BATCH_dit_xl_2 and so on for the batch of a
# model; STAGES and further ARGS of benchmarks/accelerator.py; LIMIT in seconds for one
# model under one framework; TESTS="tests/test_golden.py" and TEST_LIMIT, 0 for no tests.
#
# Whether CUDA graphs pay under PyTorch:
#
#     STAGES=cuda_graphs BACKENDS=torch TEST_LIMIT=0 LIMIT=280 bash benchmarks/gpu.sh runs/cuda_graphs
set -u
cd "$(dirname "$0")/.."
out=${1:-runs/gpu}
python=${PYTHON:-python3}
export TF_CPP_MIN_LOG_LEVEL=3 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
: "${BATCH_digits:=128}" "${BATCH_dit_s_2:=256}" "${BATCH_dit_b_2:=256}"
: "${BATCH_dit_l_2:=128}" "${BATCH_dit_xl_2:=128}"
: "${LIMIT:=90}" "${TEST_LIMIT:=55}" "${WORKERS:=8}"
mkdir -p "$out"
rm -f "$out"/*_*.json "$out"/failed_*.txt "$out/goals.md"

if [ "$TEST_LIMIT" != 0 ]; then
    for backend in ${BACKENDS:-torch jax}; do
        echo "== tests of $backend"
        # Several processes share the card.
        XLA_PYTHON_CLIENT_PREALLOCATE=false FAILED_TESTS="$out/failed_$backend.txt" \
            OMP_NUM_THREADS=1 KERAS_BACKEND=$backend PYTHONPATH="$PYTHONPATH:benchmarks" \
            timeout -k 5 "$TEST_LIMIT" "$python" -m pytest -q -n "$WORKERS" \
            -p failed_tests -p no:cacheprovider -m "not slow" \
            ${TESTS:-tests/test_golden.py tests/test_model.py tests/backend tests/layers} \
            > "$out/tests_$backend.log" 2>&1 || echo "tests ended with $?"
        tail -n 1 "$out/tests_$backend.log"
    done
fi
for model in ${MODELS:-dit_xl_2 dit_s_2}; do
    for backend in ${BACKENDS:-torch jax}; do
        batch=BATCH_$model
        name=${model}_$backend
        stages=step,kernels,loss,generate
        [ "$model" = dit_xl_2 ] || stages=$stages,by_hand
        stages=${STAGES:-$stages}
        echo "== $name"
        KERAS_BACKEND=$backend timeout -k 5 "$LIMIT" "$python" \
            benchmarks/accelerator.py --model="$model" --dtype=bfloat16 \
            --batch_size="${!batch}" --stages=$stages ${ARGS:-} \
            --out="$out/$name.json" 2> "$out/$name.log" \
            || echo "$name ended with $?: see $out/$name.log"
        "$python" benchmarks/goals.py "$out" > "$out/goals.md"
    done
done

cat "$out/goals.md"
